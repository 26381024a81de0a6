// Contract: recorder.h.
#include "arena/recorder.h"

#include <algorithm>

namespace bimkern {

void Recorder::start() {
  trace_.scopes.clear();
  trace_.allocations.clear();
  late_.clear();
  trace_.ticks = 0;
  active_ = true;
  ++session_;
}

void Recorder::open(const std::string& scope) {
  const int32_t first = static_cast<int32_t>(trace_.allocations.size());
  trace_.scopes.push_back({scope, trace_.ticks++, kForever, first, first});
}

void Recorder::close() { trace_.scopes.back().end = trace_.ticks++; }

int32_t Recorder::allocated(int64_t bytes) {
  const int32_t index = trace_.scopes.back().last++;
  trace_.allocations.push_back({bytes, trace_.ticks++, kForever, static_cast<int32_t>(trace_.scopes.size()) - 1});
  return index;
}

Trace Recorder::trace() const {
  Trace whole = trace_;
  for (const Late& late : late_) {
    const auto scope = std::find_if(whole.scopes.begin(), whole.scopes.end(),
                                    [&](const ScopeSpan& s) { return s.name == late.scope; });
    if (scope == whole.scopes.end() || late.order >= scope->last - scope->first) {
      continue;
    }
    Allocation& allocation = whole.allocations[static_cast<size_t>(scope->first + late.order)];
    if (allocation.end == kForever && allocation.bytes == late.bytes) {
      allocation.end = whole.ticks + late.tick;
    }
  }
  return whole;
}

}  // namespace bimkern
