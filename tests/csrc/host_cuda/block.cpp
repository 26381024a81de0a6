// A block: its threads take turns, each until it waits or ends, and barriers open when all of them are there.
#include <algorithm>
#include <cstdio>

#include "machine.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace host_cuda {
namespace {

// What ThreadSanitizer knows the order by. Starts and ends need one each, barriers two in turns: who arrives at the
// next must not come before who has yet to leave this one, or races disappear.
char starts, ends, barriers[2];
unsigned barriers_opened;

// Where a fiber begins.
void run_thread() {
  Machine& m = machine();
  Thread& self = m.current();
  self.fiber.started();
  acquire(&starts);
  try {
    m.body(m.context);
  } catch (Fault& fault) {
    const std::string who = bimkern::message(", thread ", text_of(self.index), " of block ", text_of(blockIdx));
    m.fault = Fault{std::move(fault.text) + who};
  }
  release(&ends);
  self.state = State::kFinished;
  self.fiber.pause(true);
}

void resume(unsigned thread) {
  Machine& m = machine();
  m.running = static_cast<int>(thread);
  threadIdx = m.current().index;
  observe([&](Observer& observer) { observer.thread_runs(m.running); });
  m.current().fiber.resume();
  m.running = -1;
  observe([](Observer& observer) { observer.thread_runs(-1); });
}

unsigned count_of(State state) {
  const Machine& m = machine();
  return static_cast<unsigned>(std::count_if(m.threads.begin(), m.threads.begin() + m.count,
                                             [=](const Thread& thread) { return thread.state == state; }));
}

// Threads that wait alike are named by the first of them.
std::string describe_deadlock() {
  constexpr int kMostShown = 8;
  const Machine& m = machine();
  std::string text = bimkern::message("deadlock in block ", text_of(blockIdx), ", ", count_of(State::kFinished), " of ",
                                      m.count, " threads have ended");
  const Thread* before = nullptr;
  int shown = 0;
  for (unsigned i = 0; i < m.count && shown < kMostShown; ++i) {
    const Thread& thread = m.threads[i];
    const bool alike = before != nullptr && thread.state == before->state && thread.site.line == before->site.line &&
                       thread.call.mask == before->call.mask;
    before = &thread;
    if (thread.state == State::kFinished || alike) {
      continue;
    }
    text += bimkern::message("; thread ", text_of(thread.index), " waits at ", text_of(thread.site));
    if (thread.state == State::kInWarpCall) {
      text += " for mask " + text_of(thread.call.mask);
    }
    ++shown;
  }
  return text;
}

// All threads are there: they must be at one and the same barrier.
void open_barrier() {
  Machine& m = machine();
  const Thread& first = m.threads[0];
  for (unsigned i = 1; i < m.count; ++i) {
    const Thread& other = m.threads[i];
    if (other.site.line != first.site.line) {
      m.fault = Fault{bimkern::message("barriers diverge in block ", text_of(blockIdx), ": thread ",
                                       text_of(first.index), " waits at ", text_of(first.site), ", thread ",
                                       text_of(other.index), " at ", text_of(other.site))};
      return;
    }
  }
  ++barriers_opened;
  for (unsigned i = 0; i < m.count; ++i) {
    m.threads[i].state = State::kRunnable;
  }
  observe([](Observer& observer) { observer.block_barrier(); });
}

void start_threads() {
  Machine& m = machine();
  for (unsigned i = 0; i < m.count; ++i) {
    Thread& thread = m.threads[i];
    thread.fiber.restart(run_thread);
    thread.state = State::kRunnable;
    thread.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    thread.site = {};
    thread.call = {};
  }
  release(&starts);
}

}  // namespace

void run_block(uint64_t index, const std::vector<unsigned>& turns) {
  Machine& m = machine();
  blockIdx = {static_cast<unsigned>(index % gridDim.x), static_cast<unsigned>(index / gridDim.x % gridDim.y),
              static_cast<unsigned>(index / gridDim.x / gridDim.y)};
  clear_shared_memory();
  start_threads();
  observe([&](Observer& observer) { observer.block_begins(index, m.count); });
  std::vector<unsigned> order = turns;
  while (!m.fault && count_of(State::kFinished) < m.count) {
    if (m.order == Order::kRandom) {
      std::shuffle(order.begin(), order.end(), m.random);
    }
    bool ran = false;
    for (auto thread = order.begin(); thread != order.end() && !m.fault; ++thread) {
      if (m.threads[*thread].state == State::kRunnable) {
        resume(*thread);
        ran = true;
      }
    }
    if (m.fault) {
      break;
    }
    if (count_of(State::kAtBarrier) == m.count) {
      open_barrier();
    } else if (!ran) {
      m.fault = Fault{describe_deadlock()};  // also who left before a barrier: hardware lets it pass, CUDA does not
    }
  }
  acquire(&ends);
  observe([](Observer& observer) { observer.block_ends(); });
}

void sync_block(Site site) {
  Thread& self = machine().current();
  self.site = site;
  self.call = {};
  self.state = State::kAtBarrier;
  char* const barrier = &barriers[barriers_opened % 2];
  release(barrier);
  self.fiber.pause();
  acquire(barrier);
}

bool is_local(const void* address) {
  Machine& m = machine();
  return m.running >= 0 && m.current().fiber.holds(address);
}

std::string text_of(const uint3& index) { return bimkern::message("(", index.x, ",", index.y, ",", index.z, ")"); }

std::string text_of(const Site& site) { return bimkern::message(site.file, ":", site.line); }

std::string text_of(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%08x", mask);
  return text;
}

}  // namespace host_cuda
