// Dynamic storage allocation: gives every item, with a size and a lifetime, an offset, so that no two overlap while
// both are live, and the height is low. NP-hard; these are greedy algorithms, and a lower bound.
#pragma once

#include <vector>

#include "core/common.h"

namespace bimkern {

struct Item {
  int64_t bytes;
  int64_t begin;
  int64_t end;  // live in [begin, end)
};

struct Placement {
  std::vector<int64_t> offsets;
  int64_t height = 0;
};

enum class Fit { kFirst, kBest };  // the lowest gap, or the smallest one that is large enough

// No placement is lower than this.
int64_t largest_live_sum(const std::vector<Item>& items);

// Places items one by one, each into a gap between those placed before that are live at the same time. order: indices.
// Quadratic. Source: Pisarchyk, Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", section 5.
Placement place_in_order(const std::vector<Item>& items, const std::vector<int32_t>& order, Fit fit);

// Places items in order of time, as an allocator without a plan does. O(n log n) with kBest.
Placement place_by_time(const std::vector<Item>& items, Fit fit);

}  // namespace bimkern
