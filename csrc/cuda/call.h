// A call on a device: which one, its stream, and the working memory that Python lends for it.
#pragma once

#include <cstddef>
#include <cstdint>
#ifdef CPK_EMULATE
#include <utility>
#include <vector>
#endif

namespace cplearn::cuda {

struct Device {
  int index;
  void* stream;         // cudaStream_t
  int processors;       // multiprocessors
  int shared_limit;     // bytes of shared memory that a block may ask for
  // What decides how much memory a call takes, whatever the number of codes is: codes that are worked on at a time,
  // and, for independent codes, whose products are kept meanwhile, products.
  int64_t span_codes, span_products;
};

// Every function runs twice: first without memory, to count what it needs (nothing is launched then), then with it. So
// the layout of the memory is written once.
class Call {
 public:
  Call(const Device& device, void* memory) : device(device), memory_(static_cast<char*>(memory)) {}

  bool counting() const { return memory_ == nullptr; }
  size_t bytes() const { return used_; }

  template <class T>
  T* take(int64_t count) {
    const size_t begin = used_;
    used_ += (sizeof(T) * size_t(count) + 255) / 256 * 256;
#ifdef CPK_EMULATE
    // Behind every array lies a gap that the tests find untouched.
    if (begin == 0) gaps().clear();
    gaps().emplace_back(begin + sizeof(T) * size_t(count), used_ + 256);
    used_ += 256;
#endif
    return counting() ? nullptr : reinterpret_cast<T*>(memory_ + begin);
  }

#ifdef CPK_EMULATE
  // (begin, end) of the gaps of the latest call.
  static std::vector<std::pair<size_t, size_t>>& gaps() {
    static std::vector<std::pair<size_t, size_t>> list;
    return list;
  }
#endif

  const Device device;

 private:
  char* memory_;
  size_t used_ = 0;
};

}  // namespace cplearn::cuda
