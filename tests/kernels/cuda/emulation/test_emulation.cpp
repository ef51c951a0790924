// Small kernels, right and wrong ones, under the thread model: what test_cuda_emulation.py expects of each.
//
// Prints a line per case, "NAME: ok" or "NAME: <the error>".
#include <cstdio>
#include <vector>

#include "emulation.h"

using namespace cplearn::cuda;
namespace emulation = cplearn::emulation;

namespace {

std::vector<float> out(1024);

void report(const char* name, int threads, int floats, const std::function<void()>& body) {
  try {
    emulation::run({name, {1}, {unsigned(threads)}, 4 * floats}, body);
    std::printf("%s: ok\n", name);
  } catch (const std::runtime_error& error) {
    std::printf("%s: %s\n", name, error.what());
  }
}

int thread() { return int(threadIdx.x); }

// Every thread hands its number to the next one.
void hand_over(const std::function<void()>& between) {
  const Shared shared = shared_memory();
  shared.store(thread(), float(thread()));
  between();
  out[thread()] = shared.load((thread() + 1) % int(blockDim.x));
}

}  // namespace

int main() {
  for (unsigned order : {0u, 1u, 7u}) {
    emulation::set_order(order);
    report("block barrier", 64, 64, [] { hand_over(sync_block); });
    for (int t = 0; t < 64; ++t) {
      if (out[t] != float((t + 1) % 64)) std::printf("block barrier: wrong value\n");
    }
    report("no barrier", 64, 64, [] { hand_over([] {}); });
    report("warp barrier in one warp", 32, 32, [] { hand_over(sync_warp); });
    report("warp barrier across warps", 64, 64, [] { hand_over(sync_warp); });
    report("named barrier", 64, 64, [] { hand_over([] { sync_named(3, 64); }); });
    report("named barriers of halves", 64, 64, [] { hand_over([] { sync_named(1 + thread() / 32, 32); }); });
    report("a shuffle is no barrier", 32, 32, [] { hand_over([] { shuffle_xor(1.0f, 1); }); });
    report("write after read", 64, 64, [] {
      hand_over(sync_block);
      shared_memory().store(thread(), 0.0f);
    });
    report("write after read and a barrier", 64, 64, [] {
      hand_over(sync_block);
      sync_block();
      shared_memory().store(thread(), 0.0f);
    });
    report("two writes", 64, 64, [] { shared_memory().store(0, 1.0f); });
    report("two buffers in turn", 64, 128, [] {
      for (int i = 0; i < 5; ++i) {
        const Shared buffer = shared_memory() + (i % 2) * 64;
        buffer.store(thread(), float(i));
        sync_block();
        out[thread()] = buffer.load(63 - thread());
      }
    });
    report("one buffer in turn", 64, 64, [] {
      for (int i = 0; i < 5; ++i) {
        shared_memory().store(thread(), float(i));
        sync_block();
        out[thread()] = shared_memory().load(63 - thread());
      }
    });
    report("nobody wrote", 32, 32, [] { out[thread()] = shared_memory().load(5); });
    report("out of bounds", 32, 32, [] { shared_memory().store(thread() + 1, 0.0f); });
    report("vector off its alignment", 32, 160, [] { shared_memory().store4(4 * thread() + 2, {}); });
    report("global vector off its alignment", 32, 0, [] { load_vector<float4>(out.data() + 1 + 4 * thread()); });
    report("a barrier that some never reach", 64, 0, [] {
      if (thread() < 40) sync_block();
    });
    report("a barrier of two sizes", 64, 0, [] { sync_named(1, thread() < 32 ? 64 : 32); });
    report("shuffle and ballot", 64, 0, [] {
      const double other = shuffle_xor(double(thread()) + 0.25, 5);
      const uint32_t odd = warp_ballot(thread() % 2 == 1);
      if (other != double(thread() / 32 * 32 + (thread() % 32 ^ 5)) + 0.25) emulation::fail("wrong shuffle");
      if (odd != 0xaaaaaaaau) emulation::fail("wrong ballot");
    });
    // A product of known matrices: a[i][k] = i + k / 4 on the left, b[k][j] = k - 3 j on the right, all exact.
    report("matrix product", 32, 0, [] {
      const int group = thread() / 4, in_group = thread() % 4;
      const auto pair = [](float first, float second) { return half_bits(first) | uint32_t(half_bits(second)) << 16; };
      const auto a = [](int i, int k) { return float(i) + 0.25f * float(k); };
      const auto b = [](int k, int j) { return float(k - 3 * j); };
      uint32_t left[4], right[2];
      for (int i = 0; i < 4; ++i) {
        const int row = group + 8 * (i % 2), k = 2 * in_group + 8 * (i / 2);
        left[i] = pair(a(row, k), a(row, k + 1));
      }
      for (int i = 0; i < 2; ++i) {
        const int k = 2 * in_group + 8 * i;
        right[i] = pair(b(k, group), b(k + 1, group));
      }
      float d[4] = {1, 1, 1, 1};
      mma_m16n8k16(d, left, right);
      for (int i = 0; i < 4; ++i) {
        const int row = group + 8 * (i / 2), column = 2 * in_group + i % 2;
        float expected = 1;
        for (int k = 0; k < 16; ++k) expected += a(row, k) * b(k, column);
        if (d[i] != expected) emulation::fail("wrong product");
      }
    });
  }
}
