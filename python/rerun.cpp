// Contract: rerun.h.
#include "rerun.h"

#include <algorithm>

#include "arena/plan.h"

namespace bimkern {

Rerun::Rerun(const Trace& trace) : trace_(trace), live_(trace.allocations.size()) {
  check(trace_);
  for (size_t i = 0; i < trace_.scopes.size(); ++i) {
    events_.push_back({trace_.scopes[i].begin, Kind::kOpen, static_cast<int32_t>(i)});
    events_.push_back({trace_.scopes[i].end, Kind::kClose, static_cast<int32_t>(i)});
  }
  for (size_t i = 0; i < trace_.allocations.size(); ++i) {
    const Allocation& allocation = trace_.allocations[i];
    events_.push_back({allocation.begin, Kind::kAllocate, static_cast<int32_t>(i)});
    if (!meets_successor(trace_, allocation)) {
      events_.push_back({allocation.end % trace_.ticks, Kind::kFree, static_cast<int32_t>(i)});
    }
  }
  std::sort(events_.begin(), events_.end(), [](const Event& a, const Event& b) { return a.tick < b.tick; });
}

void Rerun::step(HostArena* arena) {
  c10::Allocator& allocator = *c10::GetAllocator(c10::DeviceType::CPU);
  for (const Event& event : events_) {
    const size_t i = static_cast<size_t>(event.index);
    switch (event.kind) {
      case Kind::kOpen:
        if (arena != nullptr) {
          arena->open(trace_.scopes[i].name);
        }
        break;
      case Kind::kClose:
        if (arena != nullptr) {
          arena->close(trace_.scopes[i].name, false);
        }
        break;
      case Kind::kAllocate:
        live_[i] = allocator.allocate(static_cast<size_t>(trace_.allocations[i].bytes));
        break;
      case Kind::kFree:
        live_[i].clear();
        break;
    }
  }
}

}  // namespace bimkern
