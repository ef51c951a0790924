// Products of rows with independent ±1 codes (Rademacher, or a matrix packed to bits), without multiplying: of four
// coordinates there are only sixteen signed sums, so a table of them turns four multiply-adds into one addition. The
// interface is that of HadamardBlocks (hadamard_blocks.h); what each way to multiply reaches is in docs/performance.md
// and printed by `python -m bench.micro sign_products`.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../philox.h"
#include "../layout.h"
#include "../vector.h"

namespace cplearn::CPK_TARGET {

// Tables of the signed sums of kBits vectors, as many as one 32-bit word of bits can address.
template <int kBits>
struct SignTables {
  static constexpr int kTables = kBits == 4 ? 8 : 4;
  static constexpr int kWord = kTables * kBits;  // bits of a word that are used: 32, or 24
  static constexpr int kEntries = 1 << kBits;

  alignas(64) float entries[kTables * kEntries * kLanes];

  // The tables of kWord vectors, one after the other at `x`.
  CPK_INLINE void make(const float* x) {
    for (int t = 0; t < kTables; ++t) make_one(x + t * kBits * kLanes, entries + t * kEntries * kLanes);
  }

  // sum[i] += the signed sum of the kWord vectors, by the bits of words[i] (1: subtract); or = if this is the first
  // part.
  template <bool kFirst>
  CPK_INLINE void look_up(const uint32_t* words, int64_t count, float* sum) const {
    constexpr int kEntryShift = CPK_LANES == 16 ? 6 : CPK_LANES == 8 ? 5 : 4;  // log2 of an entry's bytes
    constexpr uint64_t kMask = uint64_t{kEntries - 1} << kEntryShift;
    const char* const bytes = reinterpret_cast<const char*>(entries);
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t shifted = uint64_t(words[i]) << kEntryShift;
      Vec part[kTables];
#pragma GCC unroll 8
      for (int t = 0; t < kTables; ++t) {
        const uint64_t entry = (shifted >> (kBits * t) & kMask) + (uint64_t(kEntries * t) << kEntryShift);
        part[t] = *reinterpret_cast<const VecInMemory*>(bytes + entry);
      }
#pragma GCC unroll 3
      for (int half = kTables / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
        for (int t = 0; t < half; ++t) part[t] = part[t] + part[t + half];
      }
      store(sum + i * kLanes, kFirst ? part[0] : load(sum + i * kLanes) + part[0]);
    }
  }

 private:
  // table[e]: bit i of e set where x[i] is subtracted. Sums of sums of half as many vectors.
  CPK_INLINE static void make_one(const float* x, float* table) {
    constexpr int kHalf = kBits / 2, kHalfEntries = 1 << kHalf;
    Vec low[kHalfEntries], high[kHalfEntries];
    signed_sums<kHalf>(x, low);
    signed_sums<kHalf>(x + kHalf * kLanes, high);
#pragma GCC unroll 64
    for (int e = 0; e < kEntries; ++e) {
      store(table + e * kLanes, low[e & (kHalfEntries - 1)] + high[e >> kHalf]);
    }
  }

  template <int kCount>
  CPK_INLINE static void signed_sums(const float* x, Vec* sums) {
    sums[0] = load(x);
    sums[1] = -sums[0];
#pragma GCC unroll 3
    for (int i = 1; i < kCount; ++i) {
      const Vec next = load(x + i * kLanes);
#pragma GCC unroll 8
      for (int e = 0; e < 1 << i; ++e) {
        sums[e + (1 << i)] = sums[e] - next;
        sums[e] = sums[e] + next;
      }
    }
  }
};

// Transposes a 32 x 32 matrix of bits in place: bit j of word i becomes bit i of word j (Warren, Hacker's Delight 7-3).
static inline void transpose_bits(uint32_t (&rows)[32]) {
  uint32_t mask = 0x0000ffff;
  for (int distance = 16; distance != 0; distance >>= 1, mask ^= mask << distance) {
    for (int i = 0; i < 32; i = ((i | distance) + 1) & ~distance) {
      const uint32_t swapped = ((rows[i] >> distance) ^ rows[i | distance]) & mask;
      rows[i] ^= swapped << distance;
      rows[i | distance] ^= swapped;
    }
  }
}

// out[part][i] = bits 24 * part … of the strings of bits whose words of 32 are in[word][i], `words` of them.
static inline void repack_in_24(const uint32_t* in, int64_t words, int64_t count, uint32_t* out) {
  for (int64_t part = 0; part * 24 < words * 32; ++part) {
    const uint32_t* low = in + part * 24 / 32 * count;
    const uint32_t* high = low + (part * 24 / 32 + 1 < words ? count : 0);  // what lies beyond the end is never used
    const int shift = int(part * 24 % 32);
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t both = uint64_t{high[i]} << 32 | low[i];
      out[part * count + i] = uint32_t(both >> shift) & 0xffffff;
    }
  }
}

class SignBlocks {
 public:
  explicit SignBlocks(const Codes& codes)
      : num_features(codes.num_features),
        num_codes(codes.num_codes),
        total_codes(codes.total_codes),
        words_(words_of_code(codes)),
        // Larger tables pay once there are enough sums to look up in each: measured, docs/performance.md.
        six_(num_features >= 256),
        block(block_for(num_features, num_codes)),
        places(six_ ? ceil_div(words_ * 32, 24) * 24 : words_ * 32),
        row_words_(six_ ? places / 24 * block : 0),
        column_words_(six_ ? ceil_div(block, 24) * places : 0),
        signs(words_ * block + row_words_ + block / 32 * places + column_words_),
        flush_blocks(1),
        codes_(codes) {}

  const int64_t num_features, num_codes, total_codes;

 private:
  const int64_t words_;  // 32-bit words of a code
  const bool six_;       // tables of six vectors, words of 24 bits; else of four, words of 32

 public:
  const int64_t block, places;

 private:
  const int64_t row_words_, column_words_;  // words repacked in 24 bits, for `logits` and for `add_codes`

 public:
  const int64_t signs, flush_blocks;

  int64_t place(int64_t k) const { return k; }

  // Words [word][code of the block] for `logits`; behind them, if `both`, [32 codes][place] for `add_codes`; each
  // followed by the same bits in words of 24, if those are used. Bits that stand for no coordinate meet zeros in a
  // tile, and codes that do not exist meet zero weights.
  void prepare(int64_t b, uint32_t* out, bool both = true) const {
    const int64_t first = b * block, existing = smaller(block, num_codes - first);
    if (codes_.kind == CodeKind::kPacked) {
      for (int64_t j = 0; j < existing; ++j) {
        for (int64_t w = 0; w < words_; ++w) out[w * block + j] = codes_.packed[(first + j) * words_ + w];
      }
      for (int64_t w = 0; w < words_; ++w) {
        memset(out + w * block + existing, 0, sizeof(uint32_t) * size_t(block - existing));
      }
    } else {
      const uint64_t index = uint64_t(codes_.first_code + first);
      for (int64_t w = 0; w < words_; w += 4) generate(index, uint32_t(w / 4), out + w * block);
    }
    if (six_) repack_in_24(out, words_, block, out + words_ * block);
    if (!both) return;
    uint32_t* const transposed = out + words_ * block + row_words_;
    for (int64_t j = 0; j < block; j += 32) {
      for (int64_t w = 0; w < words_; ++w) {
        uint32_t part[32];
        memcpy(part, out + w * block + j, sizeof part);
        transpose_bits(part);
        memcpy(transposed + j / 32 * places + w * 32, part, sizeof part);
      }
      for (int64_t k = words_ * 32; k < places; ++k) transposed[j / 32 * places + k] = 0;
    }
    if (six_) repack_in_24(transposed, block / 32, places, transposed + block / 32 * places);
  }

  template <class Sink>
  void logits(const float* tile, const uint32_t* words, Sink& sink, float* scratch) const {
    if (six_) look_up_rows<6>(tile, words + words_ * block, scratch);
    else look_up_rows<4>(tile, words, scratch);
    for (int64_t r = 0; r < block; r += 8) {
      Vec x[8];
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q) x[q] = load(scratch + (r + q) * kLanes);
      sink(r, x);
    }
  }

  template <class Source>
  Vec add_codes(Source& source, const uint32_t* words, float* sum, float*) const {
    const uint32_t* transposed = words + words_ * block + row_words_;
    return six_ ? look_up_columns<6>(source, transposed + block / 32 * places, sum)
                : look_up_columns<4>(source, transposed, sum);
  }

  template <class Source>
  void only_read(Source& source) const {
    for (int64_t k = 0; k < block; ++k) {
      source(k);
      if (k % 8 == 7) source.group_done(k / 8);
    }
  }

  void write_codes(const int64_t* codes, float* out) const {
    for (int64_t w = 0; w < words_; ++w) {
      VecInt words;
      for (int lane = 0; lane < kLanes; ++lane) words[lane] = int32_t(word_of(codes[lane], w));
      for (int i = 0; i < 32; ++i) {
        const VecInt sign = (words << (31 - i)) & broadcast_int(INT32_MIN);
        store(out + (w * 32 + i) * kLanes, as_float(as_int(broadcast(1.0f)) ^ sign));
      }
    }
    for (int64_t k = words_ * 32; k < places; ++k) store(out + k * kLanes, Vec{});
  }

 private:
  template <int kBits>
  void look_up_rows(const float* tile, const uint32_t* words, float* out) const {
    using Tables = SignTables<kBits>;
    Tables tables;
    tables.make(tile);
    tables.template look_up<true>(words, block, out);
    for (int64_t part = 1; part * Tables::kWord < places; ++part) {
      tables.make(tile + part * Tables::kWord * kLanes);
      tables.template look_up<false>(words + part * block, block, out);
    }
  }

  template <int kBits, class Source>
  Vec look_up_columns(Source& source, const uint32_t* words, float* sum) const {
    using Tables = SignTables<kBits>;
    Tables tables;
    alignas(64) float weights[Tables::kWord * kLanes];
    LeveledSum total;
    for (int64_t first = 0; first < block; first += Tables::kWord) {
      for (int64_t j = 0; j < Tables::kWord; j += 8) {
        if (first + j >= block) {  // the last words of 24 bits reach beyond the block
          memset(weights + j * kLanes, 0, sizeof(float) * 8 * kLanes);
          continue;
        }
#pragma GCC unroll 8
        for (int64_t q = 0; q < 8; ++q) {
          const Vec value = source(first + j + q);
          store(weights + (j + q) * kLanes, value);
          total.add(value);
        }
        source.group_done((first + j) / 8);
        total.group_done((first + j) / 8);
      }
      tables.make(weights);
      tables.template look_up<false>(words + first / Tables::kWord * places, places, sum);
    }
    return total.total();
  }

  // Tables are worth making for a few hundred codes; few codes should not pay for many. With few features many codes
  // are equal and share a row's mass, and sums cancel down to little: they go into double precision the sooner.
  static int64_t block_for(int64_t num_features, int64_t num_codes) {
    const int64_t most = num_features <= 16 ? 32 : num_features <= 64 ? 64 : 512;
    int64_t block = 32;
    while (block < most && block < num_codes) block *= 2;
    return block;
  }

  uint32_t word_of(int64_t code, int64_t word) const {
    if (codes_.kind == CodeKind::kPacked) return codes_.packed[code * words_ + word];
    const uint64_t index = uint64_t(codes_.first_code + code);
    return sign_words(codes_.seed, kStreamRademacher, index, uint32_t(word / 4)).word[word % 4];
  }

  // Up to four words, starting with word 4 * group, of all codes of a block: Philox4x32-10 on kWideLanes codes at a
  // time. The upper halves of the lanes hold leftovers that no product looks at.
  void generate(uint64_t first, uint32_t group, uint32_t* out) const {
    const int64_t count = smaller(4, words_ - 4 * int64_t{group});
    for (int64_t j = 0; j < block; j += kWideLanes) {
      VecWide c0, c1, c2 = uint64_t{group} - VecWide{}, c3 = uint64_t{kStreamRademacher} - VecWide{};
      for (int lane = 0; lane < kWideLanes; ++lane) {
        c0[lane] = first + uint64_t(j + lane);
        c1[lane] = (first + uint64_t(j + lane)) >> 32;
      }
      uint32_t key0 = uint32_t(codes_.seed), key1 = uint32_t(codes_.seed >> 32);
      for (int round = 0; round < 10; ++round) {
        const VecWide product0 = multiply_lower_halves(c0, kPhiloxMultiplier0);
        const VecWide product1 = multiply_lower_halves(c2, kPhiloxMultiplier1);
        c0 = (product1 >> 32) ^ c1 ^ uint64_t{key0};
        c1 = product1;
        c2 = (product0 >> 32) ^ c3 ^ uint64_t{key1};
        c3 = product0;
        key0 += kPhiloxWeyl0;
        key1 += kPhiloxWeyl1;
      }
      const VecWide results[4] = {c0, c1, c2, c3};
      for (int64_t w = 0; w < count; ++w) {
        const VecNarrow low = __builtin_convertvector(results[w], VecNarrow);
        memcpy(out + w * block + j, &low, sizeof low);
      }
    }
  }

  const Codes codes_;
};

}  // namespace cplearn::CPK_TARGET
