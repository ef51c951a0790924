// Random dictionaries and batches for the test program, the same for the same seed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "oracle.h"

// One dictionary and two views of a batch.
struct Case {
  std::mt19937 random;
  cplearn::Codes codes;
  std::vector<int32_t> positions;
  std::vector<uint32_t> packed;
  int64_t n;
  double temperature;
  std::vector<float> h[2];

  explicit Case(uint32_t seed) : random(seed) {
    const cplearn::CodeKind kind = cplearn::CodeKind(below(3));
    const int64_t f = below(20) == 0 ? 2048 : size_up_to(300), c = size_up_to(f == 2048 ? 600 : 3000);
    n = size_up_to(f == 2048 ? 20 : 70);
    int log2_block = 0;
    while (int64_t{1} << log2_block < f) ++log2_block;
    positions.resize(size_t(1) << log2_block);
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = int32_t(i);
    if (positions.size() != size_t(f)) std::shuffle(positions.begin(), positions.end(), random);
    packed.resize(size_t(c * ((f + 31) / 32)));
    for (uint32_t& word : packed) word = random();
    codes = {kind, f, c, uint64_t{random()} << 32 | random(), log2_block, positions.data(), packed.data()};
    // The temperature of the "l2" embedding, or one four times as high.
    temperature = std::sqrt(double(f)) / std::log(1e8 + 100.0 * double(c)) * (below(2) ? 4 : 1);
    for (int view = 0; view < 2; ++view) {
      for (int64_t row = 0; row < n; ++row) {
        std::vector<double> values;
        for (int64_t k = 0; k < f; ++k) {
          values.push_back(normal() + (view == 1 ? double(h[0][size_t(row * f + k)]) * std::sqrt(double(f)) : 0));
        }
        const double length = oracle::norm(values);
        for (const double value : values) h[view].push_back(float(value / length));
      }
    }
    // Half of the dictionaries do not begin at code 0, many of those beyond 32 bits.
    if (below(2)) codes.first_code = below(int64_t{1} << 20) << (below(30) + log2_block);
  }

  int64_t below(int64_t bound) { return int64_t(random() % uint32_t(bound)); }
  int64_t size_up_to(int64_t most) {  // small sizes as often as large ones
    return std::max<int64_t>(1, int64_t(std::exp(std::log(double(most)) * double(random()) / 4294967295.0)));
  }
  double normal() { return std::normal_distribution<double>()(random); }
  std::vector<float> normals(int64_t count) {
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(float(normal()));
    return values;
  }
  std::string describe() const {
    static const char* const kKinds[] = {"hadamard", "rademacher", "packed"};
    char text[160];
    snprintf(text, sizeof text, "%s, f = %ld, c = %ld, n = %ld, temperature = %g", kKinds[int(codes.kind)],
             long(codes.num_features), long(codes.num_codes), long(n), temperature);
    return text;
  }
};
