// A plan's allocations as items to place: those that die inside a scope, and the survivors.
#pragma once

#include <algorithm>

#include "arena/placement.h"
#include "arena/plan.h"

namespace bimkern {

struct Region {
  std::vector<Item> items;
  std::vector<size_t> allocations;  // of the items
};

// What lives into the next step has its memory for itself among survivors, and two slots if it meets its successor.
inline Item item_of(const Plan& plan, const Allocation& allocation) {
  const int64_t bytes = room(plan, allocation);
  if (!lives_on(plan.trace, allocation)) {
    return {bytes, allocation.begin, allocation.end};
  }
  return {meets_successor(plan.trace, allocation) ? 2 * bytes : bytes, 0, plan.trace.ticks + 1};
}

// The times when it needs its offset: what dies in the next step also lives in this one until then.
inline std::vector<Item> pieces_of(const Plan& plan, const Allocation& allocation) {
  const int64_t ticks = plan.trace.ticks;
  if (!lives_on(plan.trace, allocation) || meets_successor(plan.trace, allocation)) {
    return {item_of(plan, allocation)};
  }
  const int64_t bytes = room(plan, allocation);
  std::vector<Item> pieces = {{bytes, allocation.begin, ticks + 1}};
  if (allocation.end > ticks) {
    pieces.push_back({bytes, 0, allocation.end - ticks});
  }
  return pieces;
}

// Survivors of the whole plan, or what dies inside scope `scope`.
inline Region region_of(const Plan& plan, bool survivors, size_t scope = 0) {
  const Trace& trace = plan.trace;
  const size_t first = survivors ? 0 : static_cast<size_t>(trace.scopes[scope].first);
  const size_t last = survivors ? trace.allocations.size() : static_cast<size_t>(trace.scopes[scope].last);
  Region region;
  for (size_t i = first; i < last; ++i) {
    if (survives(trace, trace.allocations[i]) == survivors) {
      region.items.push_back(item_of(plan, trace.allocations[i]));
      region.allocations.push_back(i);
    }
  }
  return region;
}

inline int64_t bound_of(const Plan& plan) {
  std::vector<Item> items;
  for (const Allocation& allocation : plan.trace.allocations) {
    const int64_t bytes = room(plan, allocation), ticks = plan.trace.ticks;
    items.push_back({bytes, allocation.begin, std::min(allocation.end, ticks)});
    if (lives_on(plan.trace, allocation) && allocation.end != kForever) {
      items.push_back({bytes, 0, allocation.end - ticks});  // the one of the step before
    }
  }
  return largest_live_sum(items);
}

}  // namespace bimkern
