// Dynamic storage allocation: gives every item, with a size and a lifetime, an offset, so that no two overlap while
// both are live, and the height is low. NP-hard; these are greedy algorithms, and a lower bound.
#pragma once

#include <limits>
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
  int64_t comparisons = 0;  // of two items, that it took to place them in orders
};

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

enum class Fit { kFirst, kBest };  // the lowest gap, or the smallest one that is large enough

// No placement is lower than this.
int64_t largest_live_sum(const std::vector<Item>& items);

struct Placed {
  int64_t offset;
  int64_t top;
  int64_t begin;
  int64_t end;
};

// Places items one by one, each into a gap between those placed before, or fixed, that are live at the same time.
// order: indices; others than these keep offset 0. fixed: by rising offset; they do not count for the height. Gives up
// at a height above `most`. Quadratic. Source: Pisarchyk, Lee 2020, "Efficient Memory Management for Deep Neural Net
// Inference", section 5.
Placement place_in_order(const std::vector<Item>& items, const std::vector<int32_t>& order, Fit fit,
                         const std::vector<Placed>& fixed = {}, int64_t most = kNoLimit);

// Places items in order of time, as an allocator without a plan does. O(n log n) with kBest.
Placement place_by_time(const std::vector<Item>& items, Fit fit);

}  // namespace bimkern
