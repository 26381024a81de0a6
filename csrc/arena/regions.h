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

// What was alive when the step ended dies in the next one, perhaps after its successor is born (a counter that is
// replaced): it has two slots, for itself.
inline Item item_of(const Plan& plan, const Allocation& allocation) {
  const int64_t bytes = room(plan, allocation);
  return allocation.end == kForever ? Item{2 * bytes, 0, plan.trace.ticks + 1}
                                    : Item{bytes, allocation.begin, allocation.end};
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
    items.push_back({room(plan, allocation), allocation.begin, std::min(allocation.end, plan.trace.ticks)});
  }
  return largest_live_sum(items);
}

}  // namespace bimkern
