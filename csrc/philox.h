// Philox4x32-10 (Salmon et al., SC 2011) in the bit layout that cplearn_kernels/philox.py documents and freezes.
#pragma once

#include <cstdint>

#include "codes.h"

namespace cplearn {

// Last counter word: keeps the uses of one seed apart.
enum PhiloxStream : uint32_t { kStreamRademacher = 0, kStreamHadamardSigns = 1, kStreamHadamardInjection = 2 };

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53, kPhiloxMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9, kPhiloxWeyl1 = 0xBB67AE85;

struct PhiloxWords {
  uint32_t word[4];
};

CPK_SHARED_FUNCTION PhiloxWords philox4x32_10(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kPhiloxMultiplier0} * c0;
    const uint64_t product1 = uint64_t{kPhiloxMultiplier1} * c2;
    c0 = uint32_t(product1 >> 32) ^ c1 ^ key0;
    c1 = uint32_t(product1);
    c2 = uint32_t(product0 >> 32) ^ c3 ^ key1;
    c3 = uint32_t(product0);
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// The 128 sign bits of coordinates 128 * group … 128 * group + 127 of vector `index`: bit k mod 128, 1 means -1.
CPK_SHARED_FUNCTION PhiloxWords sign_words(uint64_t seed, PhiloxStream stream, uint64_t index, uint32_t group) {
  return philox4x32_10({{uint32_t(index), uint32_t(index >> 32), group, uint32_t(stream)}}, uint32_t(seed),
                       uint32_t(seed >> 32));
}

}  // namespace cplearn
