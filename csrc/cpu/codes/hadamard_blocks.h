// Products of rows with the codes of a Hadamard dictionary, a block of F codes at a time
// (cplearn_kernels/dictionary.py).
//
// This and SignBlocks are the two kinds of dictionary; everything else is written once, for either. What they share:
//
//   num_codes, total_codes  of the range, whose codes are numbered from 0; of the whole dictionary
//   block, places, signs    codes of a block; coordinates of a tile, padding included; words that `prepare` writes
//   flush_blocks            blocks whose sums may be added in float32 before they go into double precision
//   place(k)                where coordinate k lies in a tile
//   prepare(b, out, both)   the signs of block b, for `logits` and, if `both`, for `add_codes`
//   logits(tile, signs, sink, scratch)        sink(r, x[R]): the products of the tile's rows with codes r … r + R - 1
//   add_codes(source, signs, sum, scratch)    sum[place] += Σ_j source(j) w_j[place]; returns Σ_j source(j)
//   only_read(source)                         calls the source as add_codes does, and nothing more
//   write_codes(codes, out)                   a tile of kLanes codes: lane i of out[place] is ±1 of codes[i]
//
// Sources and sinks are those of walsh_hadamard.h; `scratch` is [max(block, places)][kLanes].
#pragma once

#include <cstdint>
#include <cstring>

#include "../../philox.h"
#include "../layout.h"
#include "../vector.h"
#include "walsh_hadamard.h"

namespace cplearn::CPK_TARGET {

// Source of walsh_hadamard: a tile with the block's signs applied.
struct SignedTile {
  const float* tile;
  const uint32_t* mask;
  CPK_INLINE Vec operator()(int64_t k) const { return flip_sign(load(tile + k * kLanes), mask[k]); }
  CPK_INLINE void group_done(int64_t) const {}
};

// Sink of walsh_hadamard: adds the outputs, with the block's signs, to an accumulator of coordinates. The first output
// is the sum of all inputs.
struct AddSigned {
  float* sum;
  const uint32_t* mask;
  Vec total;
  template <int R>
  CPK_INLINE void operator()(int64_t r, Vec (&x)[R]) {
    if (r == 0) total = x[0];
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q) {
      float* p = sum + (r + q) * kLanes;
      store(p, load(p) + flip_sign(x[q], mask[r + q]));
    }
  }
};

class HadamardBlocks {
 public:
  explicit HadamardBlocks(const Codes& codes)
      : num_features(codes.num_features),
        num_codes(codes.num_codes),
        total_codes(codes.total_codes),
        block(int64_t{1} << codes.log2_block),
        places(block),
        signs(block),
        // Small blocks are flushed one by one: with few features many codes are equal and share a row's mass, and E
        // cancels against sigma B down to little.
        flush_blocks(block <= 64 ? 1 : 32),
        first_block_(codes.first_code >> codes.log2_block),
        codes_(codes) {}

  const int64_t num_features, num_codes, total_codes, block, places, signs, flush_blocks;

  int64_t place(int64_t k) const { return codes_.positions[k]; }

  // The sign bit where d_b[k] = -1; places that hold no coordinate get 0. One form serves both directions.
  void prepare(int64_t b, uint32_t* out, bool = true) const {
    if (num_features != block) memset(out, 0, sizeof(uint32_t) * size_t(block));
    for (int64_t k = 0; k < num_features; k += 128) {
      const PhiloxWords words = drawn_signs(b, k / 128);
      if (num_features == block && block >= 32) {
        for (int64_t w = 0; w < 4 && k + w * 32 < block; ++w) {
          for (uint32_t i = 0; i < 32; ++i) out[k + w * 32 + i] = words.word[w] >> i << 31;
        }
        continue;
      }
      const int64_t stop = smaller(k + 128, num_features);
      for (int64_t j = k; j < stop; ++j) {
        out[codes_.positions[j]] = words.word[(j - k) / 32] >> ((j - k) % 32) << 31;
      }
    }
  }

  template <class Sink>
  void logits(const float* tile, const uint32_t* mask, Sink& sink, float* scratch) const {
    SignedTile source{tile, mask};
    walsh_hadamard(codes_.log2_block, source, sink, scratch);
  }

  template <class Source>
  Vec add_codes(Source& source, const uint32_t* mask, float* sum, float* scratch) const {
    AddSigned sink{sum, mask, broadcast(0.0f)};
    walsh_hadamard(codes_.log2_block, source, sink, scratch);
    return sink.total;
  }

  template <class Source>
  void only_read(Source& source) const { CPK_TARGET::only_read(codes_.log2_block, source); }

  void write_codes(const int64_t* codes, float* out) const {
    const VecInt sign_bit = broadcast_int(INT32_MIN);
    VecInt r;
    for (int lane = 0; lane < kLanes; ++lane) r[lane] = int32_t(codes[lane] % block);
    // Row r of the Sylvester matrix, (-1)^popcount(place & r): its second half is the first, with the other sign if r
    // has that bit.
    store(out, broadcast(1.0f));
    for (int64_t half = 1; half < block; half *= 2) {
      const VecInt sign = ((r & int32_t(half)) != 0) & sign_bit;
      for (int64_t p = 0; p < half; ++p) {
        store(out + (half + p) * kLanes, as_float(as_int(load(out + p * kLanes)) ^ sign));
      }
    }
    for (int64_t k = 0; k < num_features; k += 128) {
      VecInt words[4];
      for (int lane = 0; lane < kLanes; ++lane) {
        const PhiloxWords drawn = drawn_signs(codes[lane] / block, k / 128);
        for (int w = 0; w < 4; ++w) words[w][lane] = int32_t(drawn.word[w]);
      }
      for (int64_t j = k; j < smaller(k + 128, num_features); ++j) {
        float* const to = out + place(j) * kLanes;
        store(to, as_float(as_int(load(to)) ^ ((words[(j - k) / 32] << (31 - int(j % 32))) & sign_bit)));
      }
    }
  }

 private:
  PhiloxWords drawn_signs(int64_t b, int64_t group) const {
    return sign_words(codes_.seed, kStreamHadamardSigns, uint64_t(first_block_ + b), uint32_t(group));
  }

  const int64_t first_block_;
  const Codes codes_;
};

}  // namespace cplearn::CPK_TARGET
