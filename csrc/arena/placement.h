// Dynamic storage allocation: intervals of time with a size each get an offset, so that none that live at the same time
// overlap, and the highest end is as low as can be. NP-hard; these are greedy forms, and the bound to judge them by.
#pragma once

#include <vector>

#include "core/common.h"

namespace bimkern {

struct Item {
  int64_t bytes;
  int64_t begin;
  int64_t end;  // alive in [begin, end)
};

struct Placement {
  std::vector<int64_t> offsets;
  int64_t height = 0;
};

enum class Fit { kFirst, kBest };  // the lowest gap, or the smallest one that is large enough

// No placement is lower than this.
int64_t largest_live_sum(const std::vector<Item>& items);

// One item after the other, at a gap among those placed before that live at the same time. order holds indices.
// Quadratic. Source: Pisarchyk, Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", section 5.
Placement place_in_order(const std::vector<Item>& items, const std::vector<int32_t>& order, Fit fit);

// What an allocator does that knows no future: gaps are given out as time goes. O(n log n) with kBest.
Placement place_by_time(const std::vector<Item>& items, Fit fit);

}  // namespace bimkern
