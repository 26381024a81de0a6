// Which tokens share a window, as group_windows plans it, and what a CPU kernel reads in that.
//
// Letters: T tokens, S plans (1 for all images, or one each), G groups of g members, R relative positions.
#pragma once

#include <vector>

#include "core/common.h"

namespace bimkern {

struct WindowPlans {
  int64_t plans;
  int64_t groups;
  int64_t group_size;
  int64_t tokens;
  const int32_t* members;    // [S, G, g], token, or negative where there is none
  const int32_t* windows;    // [S, T], a number of each window
  const int32_t* positions;  // [S, T], in [0, R / 2]
};

struct Window {
  const int32_t* tokens;  // [count]
  int64_t count;
};

struct Plan {
  std::vector<Window> windows;
  const int32_t* positions;  // [T]
};

// Throws Error unless every token is a member once, beside all others of its window, and at a position that R holds.
std::vector<Plan> read_plans(const char* op, const WindowPlans& args, int64_t relative_positions);

}  // namespace bimkern
