// A small store of blocks that calls have given back; see workspace.h.
#include "workspace.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace cplearn {
namespace {

struct Block {
  void* data;
  size_t size;
};

struct Store {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;
};

// Never destroyed: a thread may still give back while the program ends.
Store& store() {
  static Store* const kept = new Store;
  return *kept;
}

}  // namespace

void* take_memory(size_t bytes, size_t& size) {
  const size_t wanted = (bytes + 64) / 64 * 64;
  {
    Store& kept = store();
    const std::lock_guard<std::mutex> lock(kept.mutex);
    size_t best = kept.blocks.size();
    for (size_t i = 0; i < kept.blocks.size(); ++i) {
      const size_t has = kept.blocks[i].size;
      // A block twice as large as wanted would be missing where it fits.
      if (has >= wanted && has <= 2 * wanted && (best == kept.blocks.size() || has < kept.blocks[best].size)) best = i;
    }
    if (best < kept.blocks.size()) {
      const Block block = kept.blocks[best];
      kept.blocks[best] = kept.blocks.back();
      kept.blocks.pop_back();
      kept.bytes -= block.size;
      size = block.size;
      return block.data;
    }
  }
  void* data = aligned_alloc(64, wanted);
  if (data == nullptr) throw std::bad_alloc();
  size = wanted;
  return data;
}

void give_back_memory(void* data, size_t size) {
  {
    Store& kept = store();
    const std::lock_guard<std::mutex> lock(kept.mutex);
    if (kept.bytes + size <= kKeptBytes) {
      kept.blocks.push_back({data, size});
      kept.bytes += size;
      return;
    }
  }
  free(data);
}

}  // namespace cplearn
