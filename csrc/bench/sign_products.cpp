// Times ways to multiply rows by ±1 codes: kernels of their own, small enough to read, one core, the codes' bits at
// hand in the form each wants. `python -m bench.micro sign_products` compiles and runs this; docs/performance.md has
// the results.
//
// Every method computes the products of kLanes rows with 512 codes (`forward`), or adds 512 weighted codes
// (`backward`), and is checked against the plain double loop before it is timed. Prints one JSON object per line.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../cpu/vector.h"

namespace {

using namespace cplearn::CPK_TARGET;

constexpr int64_t kCodes = 512;

template <class T>
T* aligned(int64_t count) {
  T* data = static_cast<T*>(aligned_alloc(64, (sizeof(T) * size_t(count) + 63) / 64 * 64));
  std::fill(data, data + count, T(0));
  return data;
}

struct Problem {
  int64_t f;
  std::vector<uint8_t> bits;  // [code][coordinate]
  float* rows;                // [coordinate][lane]
  float* weights;             // [code][lane]

  explicit Problem(int64_t f_) : f(f_), bits(size_t(f_ * kCodes)), rows(aligned<float>((f_ + 64) * kLanes)),
                                 weights(aligned<float>((kCodes + 64) * kLanes)) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (auto& bit : bits) bit = random() & 1;
    for (int64_t i = 0; i < f * kLanes; ++i) rows[i] = normal(random);
    for (int64_t i = 0; i < kCodes * kLanes; ++i) weights[i] = normal(random);
  }
  int bit(int64_t code, int64_t k) const { return code < kCodes && k < f ? bits[size_t(code * f + k)] : 0; }
};

// ---- float32 panels: ±1 as floats, multiply-adds, 8 codes at a time ------------------------------------------------

struct FloatPanel {
  static constexpr const char* kName = "float32 panel, multiply-adds";
  float* panel;
  explicit FloatPanel(const Problem& problem) : panel(aligned<float>(problem.f * kCodes)) {
    for (int64_t j = 0; j < kCodes; ++j) {
      for (int64_t k = 0; k < problem.f; ++k) {
        panel[j / 8 * 8 * problem.f + k * 8 + j % 8] = problem.bit(j, k) ? -1.0f : 1.0f;
      }
    }
  }
  void forward(const Problem& problem, float* out) const {
    for (int64_t j = 0; j < kCodes; j += 8) {
      Vec sum[8] = {};
      const float* from = panel + j * problem.f;
      for (int64_t k = 0; k < problem.f; ++k) {
        const Vec x = load(problem.rows + k * kLanes);
#pragma GCC unroll 8
        for (int q = 0; q < 8; ++q) sum[q] = sum[q] + x * broadcast(from[k * 8 + q]);
      }
      for (int q = 0; q < 8; ++q) store(out + (j + q) * kLanes, sum[q]);
    }
  }
};

// ---- tables of the 2^T signed sums of T vectors, G tables at a time ------------------------------------------------

template <int T>
CPK_INLINE void make_table(const float* x, float* table) {
  Vec sum = load(x);
  for (int i = 1; i < T; ++i) sum = sum + load(x + i * kLanes);
  store(table, sum);
#pragma GCC unroll 8
  for (int i = 0; i < T; ++i) {
    const Vec twice = load(x + i * kLanes) + load(x + i * kLanes);
    for (int e = 0; e < 1 << i; ++e) store(table + ((1 << i) + e) * kLanes, load(table + e * kLanes) - twice);
  }
}

template <int T, int G>
struct Tables {
  static const char* name() {
    static char text[64];
    snprintf(text, sizeof text, "tables of %d coordinates, %d at a time", T, G);
    return text;
  }
  using Index = uint16_t;  // byte offset of an entry, divided by 4
  int64_t parts, code_parts;
  Index *by_code, *by_coordinate;
  float* tables;
  explicit Tables(const Problem& problem)
      : parts((problem.f + T * G - 1) / (T * G)),
        code_parts((kCodes + T * G - 1) / (T * G)),
        by_code(aligned<Index>(parts * kCodes * G)),
        by_coordinate(aligned<Index>(code_parts * problem.f * G)),
        tables(aligned<float>(G * (kLanes << T))) {
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t j = 0; j < kCodes; ++j) {
        for (int i = 0; i < T * G; ++i) {
          by_code[(part * kCodes + j) * G + i / T] |= Index(problem.bit(j, part * T * G + i) * kLanes << i % T);
        }
      }
    }
    for (int64_t part = 0; part < code_parts; ++part) {
      for (int64_t k = 0; k < problem.f; ++k) {
        for (int i = 0; i < T * G; ++i) {
          by_coordinate[(part * problem.f + k) * G + i / T] |=
              Index(problem.bit(part * T * G + i, k) * kLanes << i % T);
        }
      }
    }
  }
  void look_up(const float* x, const Index* index, int64_t count, float* out) const {
    for (int g = 0; g < G; ++g) make_table<T>(x + g * T * kLanes, tables + g * (kLanes << T));
    for (int64_t i = 0; i < count; ++i, index += G) {
      Vec sum = load(out + i * kLanes);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) sum = sum + load(tables + g * (kLanes << T) + index[g]);
      store(out + i * kLanes, sum);
    }
  }
  void forward(const Problem& problem, float* out) const {
    memset(out, 0, sizeof(float) * kCodes * kLanes);
    for (int64_t part = 0; part < parts; ++part) {
      look_up(problem.rows + part * T * G * kLanes, by_code + part * kCodes * G, kCodes, out);
    }
  }
  void backward(const Problem& problem, float* out) const {
    memset(out, 0, sizeof(float) * size_t(problem.f) * kLanes);
    for (int64_t part = 0; part < code_parts; ++part) {
      look_up(problem.weights + part * T * G * kLanes, by_coordinate + part * problem.f * G, problem.f, out);
    }
  }
};

// ---- codes in the lanes: the table of a row's signed sums lies in one register and is permuted ---------------------

#if CPK_LANES == 8 || CPK_LANES == 16
struct Permutation {
  static constexpr const char* kName = "in-register permutation, codes in the lanes";
  static constexpr int kBits = CPK_LANES == 16 ? 4 : 3;
  static constexpr int kPerWord = 24;  // coordinates of a word, a multiple of kBits
  int64_t words;
  uint32_t* index;  // [word][code]
  float* tables;    // [row][group of kBits coordinates][entry]
  explicit Permutation(const Problem& problem)
      : words((problem.f + kPerWord - 1) / kPerWord),
        index(aligned<uint32_t>(words * kCodes)),
        tables(aligned<float>(kLanes * words * (kPerWord / kBits) * kLanes)) {
    for (int64_t w = 0; w < words; ++w) {
      for (int64_t j = 0; j < kCodes; ++j) {
        for (int i = 0; i < kPerWord; ++i) index[w * kCodes + j] |= uint32_t(problem.bit(j, w * kPerWord + i)) << i;
      }
    }
  }
  static Vec permute(Vec table, VecInt entries) {
#if CPK_LANES == 16
    return (Vec)_mm512_permutexvar_ps((__m512i)entries, (__m512)table);
#else
    return (Vec)_mm256_permutevar8x32_ps((__m256)table, (__m256i)entries);
#endif
  }
  void forward(const Problem& problem, float* out) const {
    constexpr int kGroups = kPerWord / kBits;
    for (int64_t row = 0; row < kLanes; ++row) {
      float* mine = tables + row * words * kGroups * kLanes;
      for (int64_t g = 0; g < words * kGroups; ++g) {
        for (int e = 0; e < 1 << kBits; ++e) {
          float sum = 0;
          for (int i = 0; i < kBits; ++i) {
            const float x = problem.rows[(g * kBits + i) * kLanes + row];
            sum += e >> i & 1 ? -x : x;
          }
          mine[g * kLanes + e] = sum;
        }
      }
      for (int64_t j = 0; j < kCodes; j += 4 * kLanes) {
        Vec sum[4] = {};
        for (int64_t w = 0; w < words; ++w) {
          VecInt entries[4];
          for (int q = 0; q < 4; ++q) memcpy(&entries[q], index + w * kCodes + j + q * kLanes, sizeof entries[q]);
          for (int g = 0; g < kGroups; ++g) {
            const Vec table = load(mine + (w * kGroups + g) * kLanes);
#pragma GCC unroll 4
            for (int q = 0; q < 4; ++q) {
              sum[q] = sum[q] + permute(table, entries[q]);
              entries[q] = entries[q] >> kBits;
            }
          }
        }
        for (int q = 0; q < 4; ++q) {
          for (int i = 0; i < kLanes; ++i) out[(j + q * kLanes + i) * kLanes + row] = sum[q][i];
        }
      }
    }
  }
};
#endif

template <class Run>
double seconds(const Run& run) {
  double best = 1e9;
  for (int repeat = 0; repeat < 15; ++repeat) {
    const auto began = std::chrono::steady_clock::now();
    run();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
  }
  return best;
}

// Checks `out` against sum_i x_i s_i in double, then prints the rate.
template <class Run>
void report(const char* name, const char* direction, const Problem& problem, int64_t outputs, const Run& run) {
  float* out = aligned<float>(outputs * kLanes);
  run(out);
  const bool forward = outputs == kCodes && direction[0] == 'f';
  for (int64_t o = 0; o < outputs; o += 37) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      double expected = 0, scale = 0;
      for (int64_t i = 0; i < (forward ? problem.f : kCodes); ++i) {
        const double x = (forward ? problem.rows : problem.weights)[i * kLanes + lane];
        expected += (forward ? problem.bit(o, i) : problem.bit(i, o)) ? -x : x;
        scale += std::fabs(x);
      }
      if (!(std::fabs(out[o * kLanes + lane] - expected) <= 1e-6 * scale)) {
        fprintf(stderr, "%s %s is wrong at f = %ld\n", name, direction, long(problem.f));
        exit(1);
      }
    }
  }
  const double rate = double(problem.f) * kCodes * kLanes / seconds([&] { run(out); });
  printf("{\"method\": \"%s\", \"direction\": \"%s\", \"num_features\": %ld, \"lanes\": %d, "
         "\"products_per_second\": %.4g}\n",
         name, direction, long(problem.f), kLanes, rate);
  free(out);
}

template <int T, int G>
void report_tables(const Problem& problem) {
  const Tables<T, G> tables(problem);
  report(tables.name(), "forward", problem, kCodes, [&](float* out) { tables.forward(problem, out); });
  report(tables.name(), "backward", problem, problem.f, [&](float* out) { tables.backward(problem, out); });
}

}  // namespace

int main() {
  for (const int64_t f : {128, 2048}) {
    const Problem problem(f);
    const FloatPanel panel(problem);
    report(panel.kName, "forward", problem, kCodes, [&](float* out) { panel.forward(problem, out); });
#if CPK_LANES == 8 || CPK_LANES == 16
    const Permutation permutation(problem);
    report(permutation.kName, "forward", problem, kCodes, [&](float* out) { permutation.forward(problem, out); });
#endif
    report_tables<4, 4>(problem);
    report_tables<4, 8>(problem);
    report_tables<6, 4>(problem);
    report_tables<8, 2>(problem);
  }
}
