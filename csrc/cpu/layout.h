// How rows, blocks of codes and work are laid out: aligned buffers, tiles of rows, sign masks, chunks of blocks.
//
// No inclusion guard: see vector.h.

// Memory on a cache line, not initialised; throws std::bad_alloc. All of it is taken before a parallel region begins.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count) {
    data_ = static_cast<T*>(aligned_alloc(64, (sizeof(T) * size_t(count) + 64) / 64 * 64));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* operator+(int64_t offset) const { return data_ + offset; }
  T& operator[](int64_t i) const { return data_[i]; }
  void fill(T value) const {
    for (int64_t i = 0; i < count_; ++i) data_[i] = value;
  }

 private:
  int64_t count_;
  T* data_;
};

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the work is cut. Codes are cut into slabs of consecutive blocks, rows into tiles; an item is one tile in one
// slab, and each item is summed by one thread in ascending order of blocks. Slabs depend on the problem alone, never
// on the number of threads, so neither does the result. One slab does when there are tiles enough to share out.
// A round takes a group of blocks from every slab: few enough codes that a round's arrays stay in the second-level
// cache, enough that barriers do not show.
struct Schedule {
  static constexpr int64_t kWantedItems = 8;
  static constexpr int64_t kRoundCodes = 512;

  int log2_block;
  int64_t block, blocks, num_codes, tiles, slabs, slab_blocks, group, rounds;

  Schedule(const HadamardCodes& codes, int64_t tiles_) : log2_block(codes.log2_block), tiles(tiles_) {
    block = int64_t{1} << log2_block;
    num_codes = codes.num_codes;
    blocks = divide_up(num_codes, block);
    group = block < kRoundCodes ? kRoundCodes / block : 1;
    slabs = smaller(divide_up(kWantedItems, tiles), divide_up(blocks, group));
    slab_blocks = divide_up(blocks, slabs);
    slabs = divide_up(blocks, slab_blocks);
    rounds = divide_up(slab_blocks, group);
  }

  int64_t items() const { return slabs * tiles; }
  int64_t first_block(int64_t slab, int64_t round) const { return slab * slab_blocks + round * group; }
  // How many blocks the slab has in this round: `group`, fewer at its end, or none.
  int64_t blocks_in(int64_t slab, int64_t round) const {
    const int64_t end = smaller((slab + 1) * slab_blocks, blocks);
    const int64_t left = end - first_block(slab, round);
    return left < 0 ? 0 : smaller(left, group);
  }
  // How many codes of a block exist: all but perhaps the last are whole.
  int64_t codes_in(int64_t b) const { return smaller(block, num_codes - b * block); }
  int64_t tile_floats() const { return block * kLanes; }
  // How many blocks may be summed in float32 before a flush into double precision. Small blocks are flushed one by one:
  // with few features many codes are equal and share a row's mass, and E cancels against sigma B down to little.
  int64_t flush_blocks() const { return block <= 64 ? 1 : 32; }
};

// Sign masks of a block: mask[position(k)] is the sign bit where d_b[k] = -1; places that hold no coordinate stay 0.
static inline void make_sign_masks(const HadamardCodes& codes, int64_t block, int32_t* mask) {
  for (int64_t k = 0; k < codes.num_features; k += 128) {
    const PhiloxWords words = sign_words(codes.seed, kStreamHadamardSigns, uint64_t(block), uint32_t(k / 128));
    const int64_t stop = k + 128 < codes.num_features ? k + 128 : codes.num_features;
    for (int64_t j = k; j < stop; ++j) {
      const uint32_t bit = words.word[(j - k) / 32] >> ((j - k) % 32) & 1;
      mask[codes.positions[j]] = int32_t(bit << 31);
    }
  }
}

// The rows of one or two batches as tiles of kLanes rows, [tile][place][lane], scaled so that a transform gives log2 of
// the softmax's numerators, and permuted into the places of a block. The tiles of the second batch follow those of the
// first. Rows that only pad a batch's last tile are zero.
struct Tiles {
  int64_t rows, per_batch, count, block;
  Buffer<float> data;

  Tiles(const HadamardCodes& codes, const Batch* batches, int num_batches, double scale, int threads)
      : rows(batches[0].rows),
        per_batch(divide_up(rows, kLanes)),
        count(num_batches * per_batch),
        block(int64_t{1} << codes.log2_block),
        data(count * block * kLanes) {
    if (block != codes.num_features || rows % kLanes != 0) data.fill(0.0f);
    // Sums of `block` such values stay finite; anything larger is clamped, so that finite inputs give finite results.
    const double limit = 1e30 / double(block);
    in_parallel(threads, [&](int64_t worker, int64_t workers) {
      const Share mine(count, worker, workers);
      for (int64_t t = mine.begin; t < mine.end; ++t) {
        const int64_t first = t % per_batch * kLanes, last = smaller(first + kLanes, rows);
        for (int64_t row = first; row < last; ++row) {
          const float* from = batches[t / per_batch].data + row * codes.num_features;
          float* to = tile(t) + (row - first);
          for (int64_t k = 0; k < codes.num_features; ++k) {
            const double value = from[k] * scale;
            to[codes.positions[k] * kLanes] = float(value > limit ? limit : value < -limit ? -limit : value);
          }
        }
      }
    });
  }

  float* tile(int64_t t) const { return data + t * block * kLanes; }
  // Whether lane `i`, counted over all tiles, holds no row.
  bool is_padding(int64_t i) const { return i % (per_batch * kLanes) >= rows; }
  // The lane, counted over all tiles, of a batch's row.
  int64_t lane_of(int64_t batch, int64_t row) const { return batch * per_batch * kLanes + row; }
};

// Source of walsh_hadamard: a tile with the block's signs applied.
struct SignedTile {
  const float* tile;
  const int32_t* mask;
  CPK_INLINE Vec operator()(int64_t k) const { return flip_sign(load(tile + k * kLanes), mask[k]); }
  CPK_INLINE void group_done(int64_t) const {}
};

// Sink of walsh_hadamard: adds the outputs, with the block's signs, to an accumulator of coordinates.
struct AddSigned {
  float* sum;
  const int32_t* mask;
  template <int R>
  CPK_INLINE void operator()(int64_t r, Vec (&x)[R]) {
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q) {
      float* p = sum + (r + q) * kLanes;
      store(p, load(p) + flip_sign(x[q], mask[r + q]));
    }
  }
};
