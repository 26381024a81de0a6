// The lowest placement of several.
#pragma once

#include "arena/placement.h"

namespace bimkern {

// Comparisons of two items after which a search ends, about half a second. It counts them and reads no clock, so that
// the same items always get the same placement.
constexpr int64_t kSearchWork = 500'000'000;

// By time, in at least one order whatever the work, and in several that are improved until the height is `enough`, the
// bound is reached, or the work is used up. The large items come first, since few of them decide about the height.
// Around `fixed` items, by rising offset, which do not count for the height. 10^5 items take less than a second.
Placement place(const std::vector<Item>& items, int64_t enough = 0, int64_t work = kSearchWork,
                const std::vector<Placed>& fixed = {});

}  // namespace bimkern
