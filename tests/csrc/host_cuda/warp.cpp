// Calls that lanes of a warp make together: barriers of a warp, ballots, shuffles.
#include "machine.h"

namespace host_cuda {
namespace {

// For ThreadSanitizer: two for each warp and first lane of a mask, in turns, as in block.cpp.
struct Meeting {
  char sync[2];
  unsigned opened;
} meetings[kMaxThreads];

// The lane whose value a shuffle gives to lane.
unsigned source_of(const WarpCall& call, unsigned lane) {
  const unsigned inside = lane % call.width;
  const unsigned first = lane - inside;
  switch (call.op) {
    case WarpOp::kShuffle:
      return first + call.operand % call.width;
    case WarpOp::kShuffleUp:
      return call.operand <= inside ? lane - call.operand : lane;
    case WarpOp::kShuffleDown:
      return inside + call.operand < call.width ? lane + call.operand : lane;
    case WarpOp::kShuffleXor:
      return (inside ^ call.operand) < call.width ? first + (inside ^ call.operand) : lane;
    default:
      return lane;
  }
}

bool holds(unsigned mask, unsigned lane) { return (mask >> lane & 1u) != 0; }

void check_call(const WarpCall& call, unsigned lane, Site site) {
  if (!holds(call.mask, lane)) {
    throw Fault{bimkern::message("lane ", lane, " is not in its own mask ", text_of(call.mask), " at ", text_of(site))};
  }
  if (call.width < 1 || call.width > kWarp || (call.width & (call.width - 1)) != 0) {
    throw Fault{
        bimkern::message("width must be a power of two up to ", kWarp, ", got ", call.width, " at ", text_of(site))};
  }
}

// Whether all lanes of the mask are in this call; those that have ended need not be.
bool is_complete(const WarpCall& call, unsigned lane, const Thread* lanes, unsigned present, Site site) {
  bool complete = true;
  for (unsigned other = 0; other < present; ++other) {
    const Thread& mate = lanes[other];
    if (!holds(call.mask, other) || mate.state == State::kFinished) {
      continue;
    }
    const bool waits = mate.state == State::kInWarpCall;
    const bool same = waits && mate.call.mask == call.mask && mate.call.op == call.op;
    if (waits && !same && holds(mate.call.mask, lane)) {  // else it will continue without this lane, and come here
      throw Fault{bimkern::message("lanes of a warp meet in different calls: mask ", text_of(call.mask), " at ",
                                   text_of(site), ", mask ", text_of(mate.call.mask), " at ", text_of(mate.site))};
    }
    complete = complete && same;
  }
  return complete;
}

// Gives every lane its result and lets it run on.
void complete(Thread* lanes, unsigned count, unsigned mask) {
  uint64_t values[kWarp] = {};
  unsigned ballot = 0;
  unsigned present = 0;
  for (unsigned lane = 0; lane < count; ++lane) {
    if (holds(mask, lane) && lanes[lane].state != State::kFinished) {
      values[lane] = lanes[lane].call.value;
      present |= 1u << lane;
      ballot |= values[lane] != 0 ? 1u << lane : 0;
    }
  }
  for (unsigned lane = 0; lane < count; ++lane) {
    if (!holds(present, lane)) {
      continue;
    }
    Thread& thread = lanes[lane];
    const unsigned source = source_of(thread.call, lane);
    if (!holds(present, source)) {
      throw Fault{bimkern::message("shuffle at ", text_of(thread.site), " reads lane ", source,
                                   ", which takes no part (mask ", text_of(mask), ", present ", text_of(present), ")")};
    }
    thread.call.value = thread.call.op == WarpOp::kBallot ? ballot : values[source];
    thread.state = State::kRunnable;
  }
}

}  // namespace

uint64_t call_warp(const WarpCall& call, Site site) {
  Machine& m = machine();
  Thread& self = m.current();
  const unsigned thread = static_cast<unsigned>(m.running);
  const unsigned lane = thread % kWarp;
  const unsigned first = thread - lane;
  Thread* const lanes = &m.threads[first];
  const unsigned count = std::min(kWarp, m.count - first);
  check_call(call, lane, site);
  self.call = call;
  self.site = site;
  self.state = State::kInWarpCall;
  Meeting& meeting = meetings[first + static_cast<unsigned>(__builtin_ctz(call.mask))];
  char* const sync = &meeting.sync[meeting.opened % 2];
  const bool orders_memory = call.op == WarpOp::kSync;  // a shuffle or ballot does not
  if (orders_memory) {
    release(sync);
  }
  if (is_complete(call, lane, lanes, count, site)) {
    ++meeting.opened;
    complete(lanes, count, call.mask);
    if (orders_memory) {
      observe([&](Observer& observer) { observer.warp_barrier(first, call.mask); });
    }
  } else {
    self.fiber.pause();
  }
  if (orders_memory) {
    acquire(sync);
  }
  return self.call.value;
}

}  // namespace host_cuda
