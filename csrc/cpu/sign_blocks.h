// Products of rows with independent ±1 codes (Rademacher, or a matrix packed to bits), without multiplying: of four
// coordinates there are only sixteen signed sums, so a table of them turns four multiply-adds into one addition.
// The interface is that of HadamardBlocks (hadamard_blocks.h); what each way to multiply reaches is in
// docs/performance.md and printed by `python -m bench.sign_products`.
//
// No inclusion guard: see vector.h.

constexpr int kNibbles = 8;  // tables at a time: one for every four bits of a 32-bit word
constexpr int64_t kTableFloats = kNibbles * 16 * kLanes;

// table[e] = ±x[0] ±x[1] ±x[2] ±x[3], bit i of e set where x[i] is subtracted.
CPK_INLINE void make_table(const Vec (&x)[4], float* table) {
  const Vec sum01 = x[0] + x[1], difference01 = x[0] - x[1], sum23 = x[2] + x[3], difference23 = x[2] - x[3];
  const Vec first[4] = {sum01, -difference01, difference01, -sum01};
  const Vec second[4] = {sum23, -difference23, difference23, -sum23};
#pragma GCC unroll 16
  for (int e = 0; e < 16; ++e) store(table + e * kLanes, first[e & 3] + second[e >> 2]);
}

// The tables of 32 vectors, vector i at x + i * stride.
CPK_INLINE void make_tables(const float* x, float* tables) {
  for (int nibble = 0; nibble < kNibbles; ++nibble) {
    const float* from = x + nibble * 4 * kLanes;
    make_table({load(from), load(from + kLanes), load(from + 2 * kLanes), load(from + 3 * kLanes)},
               tables + nibble * 16 * kLanes);
  }
}

// sum[i] += the signed sum of the tables' 32 vectors, by the bits of words[i]; or = if this is the first part.
template <bool kFirst>
CPK_INLINE void look_up(const float* tables, const uint32_t* words, int64_t count, float* sum) {
  constexpr int kEntryShift = CPK_LANES == 16 ? 6 : CPK_LANES == 8 ? 5 : 4;  // log2 of an entry's bytes
  const char* const bytes = reinterpret_cast<const char*>(tables);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t shifted = uint64_t(words[i]) << kEntryShift;
    Vec part[kNibbles];
#pragma GCC unroll 8
    for (int n = 0; n < kNibbles; ++n) {
      const uint64_t entry = shifted >> (4 * n) & (uint64_t{15} << kEntryShift);
      part[n] = *reinterpret_cast<const VecInMemory*>(bytes + (entry + (uint64_t(16 * n) << kEntryShift)));
    }
    const Vec total = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    store(sum + i * kLanes, kFirst ? total : load(sum + i * kLanes) + total);
  }
}

// Transposes a 32 x 32 matrix of bits in place: bit j of word i becomes bit i of word j (Warren, Hacker's Delight 7-3).
static void transpose_bits(uint32_t (&rows)[32]) {
  uint32_t mask = 0x0000ffff;
  for (int distance = 16; distance != 0; distance >>= 1, mask ^= mask << distance) {
    for (int i = 0; i < 32; i = ((i | distance) + 1) & ~distance) {
      const uint32_t swapped = ((rows[i] >> distance) ^ rows[i | distance]) & mask;
      rows[i] ^= swapped << distance;
      rows[i | distance] ^= swapped;
    }
  }
}

class SignBlocks {
 public:
  explicit SignBlocks(const Codes& codes)
      : num_features(codes.num_features),
        num_codes(codes.num_codes),
        words_(divide_up(num_features, 32)),
        block(block_for(num_features, num_codes)),
        places(words_ * 32),
        signs(2 * block * words_),
        flush_blocks(1),
        codes_(codes) {}

  const int64_t num_features, num_codes;

 private:
  const int64_t words_;  // 32-bit words of a code

 public:
  const int64_t block, places, signs, flush_blocks;

  int64_t place(int64_t k) const { return k; }

  // Words [word][code of the block] for `logits`; behind them, if `both`, [32 codes][place] for `add_codes`.
  // Bits that stand for no coordinate meet zeros in a tile, and codes that do not exist meet zero weights.
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
      for (int64_t w = 0; w < words_; w += 4) generate(uint64_t(first), uint32_t(w / 4), out + w * block);
    }
    if (!both) return;
    uint32_t* transposed = out + block * words_;
    for (int64_t j = 0; j < block; j += 32) {
      for (int64_t w = 0; w < words_; ++w) {
        uint32_t part[32];
        memcpy(part, out + w * block + j, sizeof part);
        transpose_bits(part);
        memcpy(transposed + j / 32 * places + w * 32, part, sizeof part);
      }
    }
  }

  template <class Sink>
  void logits(const float* tile, const uint32_t* words, Sink& sink, float* scratch) const {
    alignas(64) float tables[kTableFloats];
    make_tables(tile, tables);
    look_up<true>(tables, words, block, scratch);
    for (int64_t w = 1; w < words_; ++w) {
      make_tables(tile + w * 32 * kLanes, tables);
      look_up<false>(tables, words + w * block, block, scratch);
    }
    for (int64_t r = 0; r < block; r += 8) {
      Vec x[8];
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q) x[q] = load(scratch + (r + q) * kLanes);
      sink(r, x);
    }
  }

  template <class Source>
  Vec add_codes(Source& source, const uint32_t* words, float* sum, float*) const {
    LeveledSum total;
    alignas(64) float tables[kTableFloats];
    alignas(64) float weights[32 * kLanes];
    const uint32_t* transposed = words + block * words_;
    for (int64_t j = 0; j < block; j += 32) {
      for (int64_t i = 0; i < 32; i += 8) {
#pragma GCC unroll 8
        for (int64_t q = 0; q < 8; ++q) {
          const Vec value = source(j + i + q);
          store(weights + (i + q) * kLanes, value);
          total.add(value);
        }
        source.group_done((j + i) / 8);
        total.group_done((j + i) / 8);
      }
      make_tables(weights, tables);
      look_up<false>(tables, transposed + j / 32 * places, places, sum);
    }
    return total.total();
  }

  void write_code(int64_t code, float* out, int64_t stride, uint32_t*) const {
    for (int64_t k = 0; k < places; k += 32) {
      const uint32_t word = word_of(code, k / 32);
      for (int64_t i = 0; i < 32; ++i) out[(k + i) * stride] = word >> i & 1 ? -1.0f : 1.0f;
    }
  }

 private:
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
    return sign_words(codes_.seed, kStreamRademacher, uint64_t(code), uint32_t(word / 4)).word[word % 4];
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
