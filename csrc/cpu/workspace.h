// Memory for the kernels' arrays, kept between calls: fresh pages from the system cost a training step milliseconds.
#pragma once

#include <cstddef>

namespace cplearn {

// At most this much is kept for the next call; what a call needs beyond it goes back to the system.
constexpr size_t kKeptBytes = size_t{16} << 20;

// At least `bytes` on a cache line, not initialised; throws std::bad_alloc. Safe to call from several threads.
// `size` receives what was given, for give_back.
void* take_memory(size_t bytes, size_t& size);
void give_back_memory(void* data, size_t size);

}  // namespace cplearn
