// What one step allocated on its owner thread: sizes, order, lifetimes, and the scope of each allocation.
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "core/common.h"

namespace bimkern {

// The clock of a trace ticks once at every event: a scope opens or closes, an allocation is allocated or freed.
constexpr int64_t kForever = std::numeric_limits<int64_t>::max();

struct Allocation {
  int64_t bytes;  // as requested
  int64_t begin;  // tick of its allocation
  int64_t
      end;  // tick of its free; from `ticks` on: in the next step; kForever: alive when the step ended, no more known
  int32_t scope;
};

struct ScopeSpan {
  std::string name;
  int64_t begin;
  int64_t end;
  int32_t first;  // its allocations are [first, last)
  int32_t last;
};

struct Trace {
  std::vector<ScopeSpan> scopes;        // one after the other, never nested
  std::vector<Allocation> allocations;  // ordered by begin
  int64_t ticks = 0;
};

// Allocation outputs, losses: what a later scope, or the step itself, still reads.
inline bool survives(const Trace& trace, const Allocation& allocation) {
  return allocation.end > trace.scopes[static_cast<size_t>(allocation.scope)].end;
}

inline bool lives_on(const Trace& trace, const Allocation& allocation) { return allocation.end >= trace.ticks; }

// Whether it may be alive when its successor of the next step is born, such as a counter that is replaced.
inline bool meets_successor(const Trace& trace, const Allocation& allocation) {
  return lives_on(trace, allocation) && (allocation.end == kForever || allocation.end - trace.ticks > allocation.begin);
}

}  // namespace bimkern
