// CPU code of group_windows.h, a few microseconds a mask.
//
// Parallel over masks. Windows are counted with a table per axis. A group is one knapsack whose weights are its values:
// what can be summed up is a row of bits per window, made from the row before by one shift.
#include "ops/group_windows.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace bimkern {
namespace {

constexpr int64_t kBits = 64;
constexpr int32_t kEmpty = -1;

// What a GPU multiplies for a group: 16, 32 or a multiple of 64 slots.
int64_t tile_of(int64_t size) { return size <= 16 ? 16 : size <= 32 ? 32 : ceil_div<int64_t>(size, 64) * 64; }

int64_t tokens_before(const WindowAxis& axis) { return axis.shift == 0 ? 0 : axis.window - axis.shift; }

int64_t count_windows(const WindowAxis& axis) { return (axis.side - 1 + tokens_before(axis)) / axis.window + 1; }

int64_t count_windows(const GroupWindows& args) { return count_windows(args.rows) * count_windows(args.columns); }

int64_t grain_masks(const GroupWindows& args) {
  return grain_rows(args.tokens);  // a few nanoseconds a token; a thread that sleeps takes tens of microseconds to wake
}

// A coordinate's part of the window and of the position of a token.
struct Share {
  int32_t window, position;
};

std::vector<Share> shares_of(const WindowAxis& axis, int64_t window_step, int64_t position_step) {
  std::vector<Share> shares(axis.side);
  for (int64_t i = 0; i < axis.side; ++i) {
    const int64_t place = i + tokens_before(axis);
    shares[i] = {static_cast<int32_t>(place / axis.window * window_step),
                 static_cast<int32_t>(place % axis.window * position_step)};
  }
  return shares;
}

// Writes windows and positions, and returns how many tokens every window has, [S, W].
std::vector<int32_t> locate_tokens(const GroupWindows& args, const Parallel& parallel) {
  const int64_t num_windows = count_windows(args);
  std::vector<int32_t> counts(args.masks * num_windows);
  const std::vector<Share> rows = shares_of(args.rows, count_windows(args.columns), 2 * args.columns.window - 1);
  const std::vector<Share> columns = shares_of(args.columns, 1, 1);
  const auto width = static_cast<uint32_t>(args.columns.side);
  parallel(args.masks, grain_masks(args), [&](int64_t begin, int64_t end) {
    for (int64_t mask = begin; mask < end; ++mask) {
      const int64_t* ids = args.keep.ids + mask * args.keep.image_stride;
      int32_t* windows = args.windows + mask * args.tokens;
      int32_t* positions = args.positions + mask * args.tokens;
      int32_t* own = counts.data() + mask * num_windows;
      Share row = rows[0];
      uint32_t row_begin = 0;
      for (int64_t token = 0; token < args.tokens; ++token) {
        const auto id = static_cast<uint32_t>(ids[token * args.keep.token_stride]);
        if (id - row_begin >= width) {  // seldom, as tokens mostly ascend; also where row_begin is larger
          row_begin = id / width * width;
          row = rows[id / width];
        }
        const Share column = columns[id - row_begin];
        const int32_t window = row.window + column.window;
        windows[token] = window;
        positions[token] = row.position + column.position;
        ++own[window];
      }
    }
  });
  return counts;
}

// Puts the windows of one mask into groups of the same size. Bit n - 1 of a row says that n tokens can be summed up.
class Packer {
 public:
  explicit Packer(int64_t size) : size_(size), words_(ceil_div(size, kBits)) {}

  // Writes the first slot of every window that has tokens and returns the number of groups.
  int64_t pack(const int32_t* counts, int64_t num_windows, int64_t* slots) {
    left_.clear();
    for (int64_t window = 0; window < num_windows; ++window) {
      if (counts[window] > 0) {
        left_.push_back(window);
      }
    }
    rows_.assign((left_.size() + 1) * words_, 0);
    int64_t groups = 0;
    for (size_t first = 0; first < left_.size(); ++groups) {
      first = fill_group(first, counts, groups * size_, slots);
    }
    return groups;
  }

 private:
  // Fills one group from the windows left_[first:] and returns where those begin that stay.
  size_t fill_group(size_t first, const int32_t* counts, int64_t group_slot, int64_t* slots) {
    // Once a group is full, the windows behind are not needed: of equally good choices, that of lower indices is taken.
    size_t last = first;
    while (last < left_.size() && !reaches(last - first, size_)) {
      add_window(last - first, counts[left_[last]]);
      ++last;
    }
    int64_t sum = size_;
    while (!reaches(last - first, sum)) {
      --sum;
    }
    size_t stay = last;
    for (size_t i = last; i-- > first;) {
      const int64_t window = left_[i];
      if (reaches(i - first, sum)) {
        left_[--stay] = window;
      } else {
        sum -= counts[window];
        slots[window] = group_slot + sum;
      }
    }
    return stay;
  }

  // Whether some of the first `row` windows have `sum` tokens together.
  bool reaches(size_t row, int64_t sum) const {
    return sum == 0 || (rows_[row * words_ + (sum - 1) / kBits] >> ((sum - 1) % kBits) & 1) != 0;
  }

  // Makes the next row: what the row has, the same with count tokens more, and count itself.
  void add_window(size_t row, int64_t count) {
    const uint64_t* from = rows_.data() + row * words_;
    uint64_t* to = rows_.data() + (row + 1) * words_;
    const int64_t skipped = count / kBits, bits = count % kBits;
    for (int64_t word = 0; word < words_; ++word) {
      const int64_t source = word - skipped;
      const uint64_t upper = source >= 0 ? from[source] << bits : 0;
      const uint64_t lower = source > 0 && bits > 0 ? from[source - 1] >> (kBits - bits) : 0;
      to[word] = from[word] | upper | lower;
    }
    to[(count - 1) / kBits] |= uint64_t{1} << ((count - 1) % kBits);
  }

  const int64_t size_, words_;
  std::vector<int64_t> left_;   // windows
  std::vector<uint64_t> rows_;  // row i: of the first i windows
};

// All masks in groups of one size, and what their attention costs.
struct Choice {
  WindowGrouping grouping;
  double cost = 0;
};

Choice pack_all(const GroupWindows& args, const std::vector<int32_t>& counts, int64_t size, const Parallel& parallel) {
  const int64_t num_windows = count_windows(args);
  Choice choice{{0, size, std::vector<int64_t>(args.masks * num_windows)}};
  std::vector<int64_t> groups(args.masks);
  parallel(args.masks, grain_masks(args), [&](int64_t begin, int64_t end) {
    Packer packer(size);
    for (int64_t mask = begin; mask < end; ++mask) {
      const int64_t first = mask * num_windows;
      groups[mask] = packer.pack(counts.data() + first, num_windows, choice.grouping.slots.data() + first);
    }
  });
  choice.grouping.groups = *std::max_element(groups.begin(), groups.end());
  const auto tile = static_cast<double>(tile_of(size));
  choice.cost = static_cast<double>(std::accumulate(groups.begin(), groups.end(), int64_t{0})) * tile * tile;
  return choice;
}

}  // namespace

WindowGrouping group_windows(const GroupWindows& args, const Parallel& parallel) {
  check_keep("group_windows", args.keep, {args.masks, 0, args.rows.side * args.columns.side, args.tokens, 0});
  if (args.masks == 0 || args.tokens == 0) {
    return {};
  }
  const std::vector<int32_t> counts = locate_tokens(args, parallel);
  const int64_t largest = *std::max_element(counts.begin(), counts.end());
  const bool one_group = args.tokens <= 2 * args.rows.window * args.columns.window;
  Choice best = pack_all(args, counts, one_group ? args.tokens : largest, parallel);
  if (args.published) {
    return std::move(best.grouping);
  }
  // From some size on, even groups without an empty slot cost more than the best.
  const double all_tokens = static_cast<double>(args.masks) * static_cast<double>(args.tokens);
  for (int64_t size = tile_of(largest);
       size <= tile_of(args.tokens) && all_tokens * static_cast<double>(size) < best.cost; size = tile_of(size + 1)) {
    Choice choice = pack_all(args, counts, size, parallel);
    if (choice.cost < best.cost) {
      best = std::move(choice);
    }
  }
  return std::move(best.grouping);
}

void fill_groups(const GroupWindows& args, const WindowGrouping& grouping, int32_t* members, const Parallel& parallel) {
  const int64_t num_windows = count_windows(args), num_slots = grouping.groups * grouping.size;
  parallel(args.masks, grain_masks(args), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> next(num_windows);
    for (int64_t mask = begin; mask < end; ++mask) {
      std::copy_n(grouping.slots.data() + mask * num_windows, grouping.slots.empty() ? 0 : num_windows, next.data());
      std::fill_n(members + mask * num_slots, num_slots, kEmpty);
      for (int64_t token = 0; token < args.tokens; ++token) {
        members[mask * num_slots + next[args.windows[mask * args.tokens + token]]++] = static_cast<int32_t>(token);
      }
    }
  });
}

}  // namespace bimkern
