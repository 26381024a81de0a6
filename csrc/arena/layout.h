// Gives the allocations of a plan their offsets.
#pragma once

#include "arena/plan.h"

namespace bimkern {

// Sets offsets and peak. The bound must be set.
void lay_out(Plan& plan);

}  // namespace bimkern
