// How rows, codes and work are laid out: buffers, tiles of rows, the cut into splits and rounds.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "vector.h"
#include "workers.h"
#include "workspace.h"

namespace cplearn::CPK_TARGET {

// Memory on a cache line, not initialised; throws std::bad_alloc. All of it is taken before a parallel region begins.
template <class T>
class Buffer {
 public:
  // Arrays that are walked together begin at different `line`s (of 64 bytes), see padded().
  explicit Buffer(int64_t count, int line = 0) : count_(count) {
    memory_ = take_memory(sizeof(T) * size_t(count) + 64 * size_t(line), size_);
    data_ = reinterpret_cast<T*>(static_cast<char*>(memory_) + 64 * line);
  }
  ~Buffer() { give_back_memory(memory_, size_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* operator+(int64_t offset) const { return data_ + offset; }
  T& operator[](int64_t i) const { return data_[i]; }
  void fill(T value) const {
    for (int64_t i = 0; i < count_; ++i) data_[i] = value;
  }

 private:
  int64_t count_;
  size_t size_;
  void* memory_;
  T* data_;
};

// The distance between arrays of `floats` floats, a power of two, that are walked together. At that very distance all
// would compete for the same few lines of every cache: the padding made forward and gradient a fifth faster.
static inline int64_t padded(int64_t floats) { return floats + 32; }

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// How the work is cut. Codes come in blocks, blocks in splits of consecutive ones, rows in tiles; an item is one tile
// in one split, and each item is summed by one thread in ascending order of blocks. Splits depend on the problem alone,
// never on the number of threads, so neither does the result. One split does when there are tiles enough to share out.
// A round takes a group of blocks from every split: few enough codes that a round's arrays stay in the second-level
// cache, enough that barriers do not show.
struct Schedule {
  static constexpr int64_t kWantedItems = 8;
  static constexpr int64_t kRoundCodes = 256;

  int64_t block, blocks, num_codes, tiles, splits, split_blocks, group, rounds;

  template <class Blocks>
  Schedule(const Blocks& dictionary, int64_t tiles_)
      : block(dictionary.block), num_codes(dictionary.num_codes), tiles(tiles_) {
    blocks = ceil_div(num_codes, block);
    group = block < kRoundCodes ? kRoundCodes / block : 1;
    splits = smaller(ceil_div(kWantedItems, tiles), ceil_div(blocks, group));
    split_blocks = ceil_div(blocks, splits);
    splits = ceil_div(blocks, split_blocks);
    rounds = ceil_div(split_blocks, group);
  }

  int64_t items() const { return splits * tiles; }
  int64_t first_block(int64_t split, int64_t round) const { return split * split_blocks + round * group; }
  // How many blocks the split has in this round: `group`, fewer at its end, or none.
  int64_t blocks_in(int64_t split, int64_t round) const {
    const int64_t end = smaller((split + 1) * split_blocks, blocks);
    const int64_t left = end - first_block(split, round);
    return left < 0 ? 0 : smaller(left, group);
  }
  // How many codes of a block exist: all but perhaps the last are whole.
  int64_t codes_in(int64_t b) const { return smaller(block, num_codes - b * block); }
};

// How one or two batches of `rows` rows are cut into tiles of kLanes rows. The tiles of the second batch follow those
// of the first; each batch's last tile is padded.
struct Tiling {
  int64_t rows, per_batch, count;

  Tiling(int64_t rows_, int num_batches)
      : rows(rows_), per_batch(ceil_div(rows, kLanes)), count(num_batches * per_batch) {}

  // Whether lane `i`, counted over all tiles, holds no row.
  bool is_padding(int64_t i) const { return i % (per_batch * kLanes) >= rows; }
  // The lane, counted over all tiles, of a batch's row.
  int64_t lane_of(int64_t batch, int64_t row) const { return batch * per_batch * kLanes + row; }
};

// The rows as tiles [tile][place][lane], multiplied by `scale` and put into the places that the dictionary's products
// expect. Rows that only pad, and places that hold no coordinate, are zero.
struct Tiles : Tiling {
  int64_t stride;
  bool finite = true;  // whether all embeddings are
  Buffer<float> data;

  template <class Blocks>
  Tiles(const Blocks& dictionary, const Batch* batches, int num_batches, double scale, int threads)
      : Tiling(batches[0].rows, num_batches),
        stride(padded(dictionary.places * kLanes)),
        data(count * stride, 11) {
    const int64_t features = dictionary.num_features;
    if (dictionary.places != features || rows % kLanes != 0) data.fill(0.0f);
    // Sums of so many such values stay finite; anything larger is clamped, so that finite inputs give finite results.
    const Vec lowest = broadcast(float(-1e30 / double(dictionary.places)));
    in_parallel(threads, [&](int64_t worker, int64_t workers) {
      const Share mine(count, worker, workers);
      VecInt finite_lanes = ~VecInt{};
      for (int64_t t = mine.begin; t < mine.end; ++t) {
        const int64_t first = t % per_batch * kLanes, height = smaller(kLanes, rows - first);
        for (int64_t k = 0; k < features; k += kLanes) {
          const int64_t width = smaller(kLanes, features - k);
          Vec x[kLanes] = {};
          for (int64_t row = 0; row < height; ++row) {
            const Vec given = load_part(batches[t / per_batch].data + (first + row) * features + k, width);
            finite_lanes &= given - given == Vec{};
            const Vec scaled = narrowed(scale * widened(given));
            x[row] = -vmax(-vmax(scaled, lowest), lowest);
          }
          transpose(x);
          for (int64_t i = 0; i < width; ++i) store(tile(t) + dictionary.place(k + i) * kLanes, x[i]);
        }
      }
      if (any_lane(~finite_lanes)) __atomic_store_n(&finite, false, __ATOMIC_RELAXED);
    });
  }

  float* tile(int64_t t) const { return data + t * stride; }
};

// Copies the lanes of `tile` ([place][lane]) that hold rows into `out`, (rows, num_features).
template <class Blocks>
static void store_rows(const Blocks& dictionary, const float* tile, int64_t first_row, int64_t rows, float* out) {
  const int64_t height = smaller(kLanes, rows - first_row);
  for (int64_t k = 0; k < dictionary.num_features; k += kLanes) {
    const int64_t width = smaller(kLanes, dictionary.num_features - k);
    Vec x[kLanes] = {};
    for (int64_t i = 0; i < width; ++i) x[i] = load(tile + dictionary.place(k + i) * kLanes);
    transpose(x);
    float* const to = out + first_row * dictionary.num_features + k;
    for (int64_t row = 0; row < height; ++row) store_part(to + row * dictionary.num_features, x[row], width);
  }
}

}  // namespace cplearn::CPK_TARGET
