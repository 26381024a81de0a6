// What a plan's blocks ask of the placement: one set of items for every scope, and one for the survivors.
#pragma once

#include <algorithm>

#include "arena/placement.h"
#include "arena/plan.h"

namespace bimkern {

struct Region {
  std::vector<Item> items;
  std::vector<size_t> blocks;  // whose items they are
};

// Survivors of the whole plan, or what dies inside scope `scope`. What was alive when the step ended dies in the next
// one, perhaps after its successor is born (a counter that is replaced): it has two slots, for itself.
inline Region region_of(const Plan& plan, bool survivors, size_t scope = 0) {
  const Trace& trace = plan.trace;
  const size_t first = survivors ? 0 : static_cast<size_t>(trace.scopes[scope].first);
  const size_t last = survivors ? trace.blocks.size() : static_cast<size_t>(trace.scopes[scope].last);
  Region region;
  for (size_t i = first; i < last; ++i) {
    const Block& block = trace.blocks[i];
    if (survives(trace, block) == survivors) {
      const int64_t bytes = room(plan, block);
      region.items.push_back(block.end == kForever ? Item{2 * bytes, 0, trace.ticks + 1}
                                                   : Item{bytes, block.begin, block.end});
      region.blocks.push_back(i);
    }
  }
  return region;
}

inline int64_t bound_of(const Plan& plan) {
  std::vector<Item> items;
  for (const Block& block : plan.trace.blocks) {
    items.push_back({room(plan, block), block.begin, std::min(block.end, plan.trace.ticks)});
  }
  return largest_live_sum(items);
}

}  // namespace bimkern
