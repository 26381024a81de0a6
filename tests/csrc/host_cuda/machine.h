// What the parts of the stand-in share: the threads of the block that runs, and what ended it.
#pragma once

#include <optional>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "fiber.h"
#include "host_cuda.h"

namespace host_cuda {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;  // of a block

enum class State : uint8_t { kRunnable, kAtBarrier, kInWarpCall, kFinished };

struct Thread {
  Fiber fiber;
  State state = State::kFinished;
  uint3 index{};
  Site site;        // where it waits
  WarpCall call{};  // for what, in a warp call
};

// What a kernel did that CUDA leaves undefined. Thrown on a fiber, it ends the launch.
struct Fault {
  std::string text;
};

struct Machine {
  std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);  // those of the block come first
  unsigned count = 0;                                              // of the block
  int running = -1;                                                // the thread that runs; -1: the host
  std::optional<Fault> fault;
  void (*body)(const void*) = nullptr;
  const void* context = nullptr;
  Order order = Order::kAscending;
  std::mt19937_64 random;
  Observer* observer = nullptr;

  Thread& current() { return threads[running]; }
};

Machine& machine();

// Calls f with the observer, where there is one.
template <typename F>
void observe(const F& f) {
  if (Observer* observer = machine().observer) {
    f(*observer);
  }
}

std::string text_of(const uint3& index);
std::string text_of(const Site& site);
std::string text_of(unsigned mask);

// Runs the threads of a block to their ends, or to a fault. index: of the block, in the grid.
void run_block(uint64_t index, const std::vector<unsigned>& turns);

// Shared memory of a block: made for a launch, emptied for each of its blocks.
constexpr size_t kDefaultShared = 48 * 1024;
void make_shared_memory(size_t dynamic_bytes);
void clear_shared_memory();
void open_shared_memory();  // after the launch

}  // namespace host_cuda
