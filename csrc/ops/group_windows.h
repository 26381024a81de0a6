// group_windows: which visible tokens of a sparse Swin attend to each other, in groups of equal size. Host only.
//
// Letters: S masks, T visible tokens, W windows of the grid, G groups, g slots of a group. All strides are in elements;
// a pointer without strides is contiguous. Pointers into empty tensors may be null.
#pragma once

#include <vector>

#include "core/parallel.h"
#include "ops/keep.h"

namespace bimkern {

// One axis of the grid, cut into windows; the first begins `window - shift` before it where they are shifted.
struct WindowAxis {
  int64_t side;    // at least 1
  int64_t window;  // in [1, side]
  int64_t shift;   // in [0, window)
};

struct GroupWindows {
  int64_t masks;   // S
  int64_t tokens;  // T, at most rows.side * columns.side
  WindowAxis rows, columns;
  bool published;      // take the group size of the published program, not the cheapest
  Keep keep;           // [S, T]
  int32_t* windows;    // [S, T], the window of every token
  int32_t* positions;  // [S, T], row * (2 * columns.window - 1) + column within its window
};

constexpr int64_t kMaxGridTokens = int64_t{1} << 30;  // positions, less than twice as many, fit 32 bits

struct WindowGrouping {
  int64_t groups = 0;          // G, of the mask with the most
  int64_t size = 0;            // g
  std::vector<int64_t> slots;  // [S, W], the first of G * g slots of every window that has tokens
};

// Writes windows and positions, and decides which windows share a group. Throws Error where a value of keep is out of
// range or repeated.
WindowGrouping group_windows(const GroupWindows& args, const Parallel& parallel);

// The tokens of every group, [S, G, g]; -1 where a slot is empty. args are those that the grouping is of.
void fill_groups(const GroupWindows& args, const WindowGrouping& grouping, int32_t* members, const Parallel& parallel);

}  // namespace bimkern
