// A trace with an offset for every allocation.
#pragma once

#include "arena/trace.h"

namespace bimkern {

// Two allocations share memory only if they are never live at the same time. Every scope reuses what dies inside of the
// others; survivors lie above, below or between.
struct Plan {
  Trace trace;
  int64_t alignment = 0;
  int64_t padding = 0;           // after every allocation: debug mode's canary
  std::vector<int64_t> offsets;  // of every allocation
  int64_t peak = 0;              // bytes of the region
  int64_t bound = 0;             // the largest sum of live bytes: no plan can need less
};

// The space of an allocation: its bytes and the padding, rounded up.
inline int64_t room(int64_t bytes, int64_t alignment, int64_t padding) {
  return ceil_div(bytes + padding, alignment) * alignment;
}
inline int64_t room(const Plan& plan, const Allocation& allocation) {
  return room(allocation.bytes, plan.alignment, plan.padding);
}

// Throws kBadPlan for a trace that is not well formed.
Plan make_plan(const Trace& trace, int64_t alignment, int64_t padding);

// Throw kBadPlan unless the scopes follow each other and the allocations begin inside of theirs; and unless every
// allocation is aligned and inside the region, no two that live at the same time overlap, and the bound is true. For
// what comes from a file: a plan that passes can do no harm.
void check(const Trace& trace);
void check(const Plan& plan);

// For every allocation: the last ones in its memory that die in the same scope. If these are freed, no survivor is live
// there, and all kept to the plan, the memory is free. Edges of allocation i: [first[i], first[i + 1]).
struct Predecessors {
  std::vector<int32_t> first;
  std::vector<int32_t> allocations;
};
Predecessors predecessors(const Plan& plan);

}  // namespace bimkern
