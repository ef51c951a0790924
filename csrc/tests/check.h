// What the test program checks with: failures, comparison in norm, guarded results.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "oracle.h"

// Floats between guard words that nothing may touch.
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count), data_(size_t(count + 2 * kGuard), kPattern) {}
  float* get() { return data_.data() + kGuard; }
  std::vector<float> values() const { return {data_.begin() + kGuard, data_.begin() + kGuard + count_}; }
  bool intact() const {
    for (int64_t i = 0; i < kGuard; ++i) {
      if (data_[size_t(i)] != kPattern || data_[size_t(kGuard + count_ + i)] != kPattern) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kGuard = 16;
  static constexpr float kPattern = -12345.75f;
  int64_t count_;
  std::vector<float> data_;
};

struct Failure {
  std::string what;
};

inline void require(bool condition, const std::string& what) {
  if (!condition) throw Failure{what};
}

// |got - expected| <= tolerance * max(|expected|, floor), in norm; NaN fails.
inline void compare(const std::string& what, const std::vector<float>& got, const std::vector<double>& expected,
             double tolerance, double floor) {
  require(got.size() == expected.size(), what + ": size");
  std::vector<double> difference;
  for (size_t i = 0; i < got.size(); ++i) difference.push_back(double(got[i]) - expected[i]);
  const double error = oracle::norm(difference) / std::max(oracle::norm(expected), floor);
  char text[64];
  snprintf(text, sizeof text, ": error %.2e, allowed %.0e", error, tolerance);
  require(error <= tolerance, what + text);
}
