// Fibers, barriers and the shared-memory detector of emulation.h.
#include "emulation.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <vector>

namespace cplearn::emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kWarp = 32;

// What a thread has seen of each thread of its block: entry t counts the barriers of thread t that happened before.
using Clock = std::vector<uint32_t>;

struct Barrier {
  int expected = 0;
  std::vector<int> arrived;
};

struct Word {
  float value = 0;
  int writer = -1;
  uint32_t written = 0;                            // the writer's own clock at the time
  std::vector<std::pair<int, uint32_t>> readers;  // (thread, its clock) since the last write
};

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool started = false, finished = false;
  const Barrier* waits_for = nullptr;
  Clock clock;
};

struct Warp {
  Barrier barrier;
  uint32_t words[kWarp][16] = {};
};

struct Block {
  Launch launch;
  dim3 index;
  int threads;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier whole;
  std::map<int, Barrier> named;
  std::vector<Word> shared;
  const std::function<void()>* body;
  int current = -1;
  jmp_buf scheduler;
  std::string error;
};

thread_local Block* block = nullptr;
thread_local unsigned order = 0;

// Stacks are kept from one block to the next.
class Stacks {
 public:
  ~Stacks() {
    for (void* stack : stacks_) munmap(stack, kStackBytes);
  }
  void* operator[](size_t i) {
    while (stacks_.size() <= i) {
      void* stack =
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) throw std::bad_alloc();
      stacks_.push_back(stack);
    }
    return stacks_[i];
  }

 private:
  std::vector<void*> stacks_;
};
thread_local Stacks stacks;

[[noreturn]] void back_to_scheduler() { _longjmp(block->scheduler, 1); }

void fiber_main() {
  (*block->body)();
  block->fibers[block->current].finished = true;
  back_to_scheduler();
}

void give_way() {
  Fiber& fiber = block->fibers[block->current];
  if (_setjmp(fiber.resume) == 0) back_to_scheduler();
}

// What any of these threads did until now, all of them have seen.
void join(const std::vector<int>& threads) {
  Clock& joined = block->fibers[threads[0]].clock;
  for (size_t i = 1; i < threads.size(); ++i) {
    const Clock& other = block->fibers[threads[i]].clock;
    for (int t = 0; t < block->threads; ++t) joined[t] = std::max(joined[t], other[t]);
  }
  for (size_t i = 1; i < threads.size(); ++i) block->fibers[threads[i]].clock = joined;
  for (const int t : threads) ++block->fibers[t].clock[t];
}

void wait(Barrier& barrier, int expected, bool orders_memory = true) {
  const int thread = block->current;
  if (!barrier.arrived.empty() && barrier.expected != expected) fail("threads disagree on the size of a barrier");
  barrier.expected = expected;
  barrier.arrived.push_back(thread);
  if (int(barrier.arrived.size()) < expected) {
    Fiber& fiber = block->fibers[thread];
    fiber.waits_for = &barrier;
    give_way();
    return;
  }
  for (const int t : barrier.arrived) block->fibers[t].waits_for = nullptr;
  if (orders_memory) join(barrier.arrived);
  barrier.arrived.clear();
}

// Runs a fiber until it waits or ends. Not inlined: no local of the caller may live in a register across the jumps.
__attribute__((noinline)) void run_fiber(int thread) {
  Fiber& fiber = block->fibers[thread];
  block->current = thread;
  if (_setjmp(block->scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

void run_block(Block& here, std::mt19937& generator) {
  block = &here;
  const int threads = here.threads;
  here.fibers.resize(threads);
  here.warps.resize((threads + kWarp - 1) / kWarp);
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = here.fibers[t];
    fiber.clock.assign(threads, 0);
    fiber.clock[t] = 1;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks[t];
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
  }
  std::vector<int> turns(threads);
  for (int t = 0; t < threads; ++t) turns[t] = order == 1 ? threads - 1 - t : t;
  int left = threads;
  while (left > 0) {
    if (order > 1) std::shuffle(turns.begin(), turns.end(), generator);
    bool progress = false;
    for (const int t : turns) {
      if (here.fibers[t].finished || here.fibers[t].waits_for != nullptr) continue;
      progress = true;
      run_fiber(t);
      if (!here.error.empty()) throw std::runtime_error(here.error);
      left -= here.fibers[t].finished;
    }
    if (!progress) {
      throw std::runtime_error(std::string(here.launch.kernel) + ": some threads wait at a barrier that " +
                               "others never reach");
    }
  }
}

Word& word_at(int i) {
  if (i < 0 || i >= int(block->shared.size())) fail("an access outside of the shared memory");
  return block->shared[i];
}

// Whether the running thread knows that `thread` passed the moment `time`.
bool has_seen(int thread, uint32_t time) {
  return thread == block->current || block->fibers[block->current].clock[thread] >= time;
}

}  // namespace

void fail(const std::string& message) {
  const dim3 b = block->index;
  block->error = std::string(block->launch.kernel) + ": " + message + " (block " + std::to_string(b.x) + "," +
                 std::to_string(b.y) + "," + std::to_string(b.z) + ", thread " + std::to_string(block->current) + ")";
  back_to_scheduler();
}

void run(const Launch& launch, const std::function<void()>& body) {
  const int threads = int(launch.block.x * launch.block.y * launch.block.z);
  std::mt19937 generator(order);
  Block* const outer = block;
  for (unsigned z = 0; z < launch.grid.z; ++z) {
    for (unsigned y = 0; y < launch.grid.y; ++y) {
      for (unsigned x = 0; x < launch.grid.x; ++x) {
        Block here;
        here.launch = launch, here.index = {x, y, z}, here.threads = threads, here.body = &body;
        here.shared.resize(launch.shared_bytes / 4);
        try {
          run_block(here, generator);
        } catch (...) {
          block = outer;
          throw;
        }
      }
    }
  }
  block = outer;
}

void set_order(unsigned value) { order = value; }

dim3 thread_index() { return {unsigned(block->current), 0, 0}; }
dim3 block_index() { return block->index; }
dim3 grid_size() { return block->launch.grid; }
dim3 block_size() { return block->launch.block; }

void wait_for_block() { wait(block->whole, block->threads); }
void wait_for_warp() {
  const int warp = block->current / kWarp;
  wait(block->warps[warp].barrier, std::min(kWarp, block->threads - warp * kWarp));
}
void wait_at(int id, int threads) {
  if (id < 1 || id > 15) fail("named barriers go from 1 to 15");
  if (threads % kWarp != 0) fail("a named barrier takes whole warps");
  wait(block->named[id], threads);
}

void warp_collective(const uint32_t* words, int count, const std::function<void(const uint32_t (&)[32][16])>& combine) {
  const int warp = block->current / kWarp;
  if (block->threads % kWarp != 0) fail("a warp that is not whole takes part in a collective");
  std::copy(words, words + count, block->warps[warp].words[block->current % kWarp]);
  wait(block->warps[warp].barrier, kWarp, false);  // shuffles order no memory
  combine(block->warps[warp].words);
  wait(block->warps[warp].barrier, kWarp, false);
}

float shared_load(int i) {
  Word& word = word_at(i);
  if (word.writer < 0) fail("a read of shared memory that nobody wrote");
  if (!has_seen(word.writer, word.written)) {
    fail("no barrier separates a read of shared memory from thread " + std::to_string(word.writer) + "'s write");
  }
  const uint32_t now = block->fibers[block->current].clock[block->current];
  if (word.readers.empty() || word.readers.back() != std::pair(block->current, now)) {
    word.readers.emplace_back(block->current, now);
  }
  return word.value;
}

void shared_store(int i, float value) {
  Word& word = word_at(i);
  if (word.writer >= 0 && !has_seen(word.writer, word.written)) {
    fail("no barrier separates a write of shared memory from thread " + std::to_string(word.writer) + "'s write");
  }
  for (const auto& [reader, time] : word.readers) {
    if (!has_seen(reader, time)) {
      fail("no barrier separates a write of shared memory from thread " + std::to_string(reader) + "'s read");
    }
  }
  word.readers.clear();
  word.value = value;
  word.writer = block->current;
  word.written = block->fibers[block->current].clock[block->current];
}

}  // namespace cplearn::emulation
