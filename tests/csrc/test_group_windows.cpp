// group_windows against its definition: windows by division, groups by the classic table of the knapsack.
#include "ops/group_windows.h"

#include <map>
#include <string>

#include "core/error.h"
#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

struct Groups {
  int64_t groups, size;
  std::vector<int32_t> members, windows, positions;
};

GroupWindows args_of(int64_t masks, const std::vector<int64_t>& keep, WindowAxis rows, WindowAxis columns,
                     bool published) {
  const auto tokens = static_cast<int64_t>(keep.size()) / std::max<int64_t>(masks, 1);
  return {masks, tokens, rows, columns, published, Keep{keep.data(), tokens, 1}, nullptr, nullptr};
}

Groups run(GroupWindows args, const Parallel& parallel) {
  Groups found{};
  found.windows.assign(args.masks * args.tokens, -77);
  found.positions = found.windows;
  args.windows = found.windows.data();
  args.positions = found.positions.data();
  const WindowGrouping grouping = group_windows(args, parallel);
  found.groups = grouping.groups;
  found.size = grouping.size;
  found.members.assign(args.masks * grouping.groups * grouping.size, -77);
  fill_groups(args, grouping, found.members.data(), parallel);
  return found;
}

// The windows of one mask and their tokens, in the order of window and token.
using Windows = std::map<int32_t, std::vector<int32_t>>;

// Takes what fills a group best out of windows and returns its tokens.
std::vector<int32_t> take_best(Windows& windows, int64_t size) {
  std::vector<int32_t> ids;
  std::vector<std::vector<int64_t>> best{std::vector<int64_t>(size + 1)};
  for (const auto& [id, tokens] : windows) {
    const auto count = static_cast<int64_t>(tokens.size());
    ids.push_back(id);
    best.push_back(best.back());
    for (int64_t room = count; room <= size; ++room) {
      const std::vector<int64_t>& last = best[best.size() - 2];
      best.back()[room] = std::max(last[room], last[room - count] + count);
    }
  }
  std::vector<int32_t> group;
  for (size_t i = ids.size(); i-- > 0;) {
    if (best[i + 1][size] != best[i][size]) {
      const std::vector<int32_t>& tokens = windows[ids[i]];
      size -= static_cast<int64_t>(tokens.size());
      group.insert(group.begin(), tokens.begin(), tokens.end());
      windows.erase(ids[i]);
    }
  }
  return group;
}

// The windows of every mask, by division.
std::vector<Windows> windows_of(const GroupWindows& args, const Groups& found) {
  const auto before = [](const WindowAxis& axis) { return (axis.window - axis.shift) % axis.window; };
  std::vector<Windows> windows(args.masks);
  for (int64_t mask = 0; mask < args.masks; ++mask) {
    for (int64_t token = 0; token < args.tokens; ++token) {
      const int64_t at = mask * args.tokens + token, id = args.keep.ids[at];
      const int64_t row = id / args.columns.side + before(args.rows);
      const int64_t column = id % args.columns.side + before(args.columns);
      const int64_t per_row = (args.columns.side - 1 + before(args.columns)) / args.columns.window + 1;
      const int64_t window = row / args.rows.window * per_row + column / args.columns.window;
      EXPECT(found.windows[at] == window);
      EXPECT(found.positions[at] ==
             row % args.rows.window * (2 * args.columns.window - 1) + column % args.columns.window);
      windows[mask][static_cast<int32_t>(window)].push_back(static_cast<int32_t>(token));
    }
  }
  return windows;
}

// What attention costs on a GPU.
int64_t cost_of(std::vector<Windows> windows, int64_t size) {
  int64_t groups = 0;
  for (Windows& mask : windows) {
    for (; !mask.empty(); ++groups) {
      take_best(mask, size);
    }
  }
  int64_t tile = 16;
  while (tile < size) {
    tile += std::min<int64_t>(tile, 64);
  }
  return groups * tile * tile;
}

// Holds what was found to the definition.
void expect_groups(const GroupWindows& args, const Groups& found) {
  std::vector<Windows> masks = windows_of(args, found);
  size_t largest = 0;
  for (const Windows& mask : masks) {
    for (const auto& [id, tokens] : mask) {
      largest = std::max(largest, tokens.size());
    }
  }
  const bool one_group = args.tokens <= 2 * args.rows.window * args.columns.window;
  int64_t wanted = one_group ? args.tokens : static_cast<int64_t>(largest);
  int64_t cheapest = cost_of(masks, wanted);
  for (int64_t size = 16; !args.published && size <= 64 * 15; size += std::min<int64_t>(size, 64)) {
    const int64_t cost = size < static_cast<int64_t>(largest) ? cheapest : cost_of(masks, size);
    if (cost < cheapest) {
      cheapest = cost;
      wanted = size;
    }
  }
  EXPECT(found.size == wanted);
  int64_t most = 0;
  for (int64_t mask = 0; mask < args.masks; ++mask) {
    Windows& windows = masks[mask];
    int64_t groups = 0;
    for (; !windows.empty(); ++groups) {
      std::vector<int32_t> group = take_best(windows, found.size);
      EXPECT(!group.empty() && groups < found.groups);
      if (group.empty() || groups >= found.groups) {
        return;
      }
      group.resize(found.size, -1);
      EXPECT(
          std::equal(group.begin(), group.end(), found.members.begin() + (mask * found.groups + groups) * found.size));
    }
    const auto own_end = found.members.begin() + (mask + 1) * found.groups * found.size;
    EXPECT(std::all_of(found.members.begin() + (mask * found.groups + groups) * found.size, own_end,
                       [](int32_t member) { return member == -1; }));
    most = std::max(most, groups);
  }
  EXPECT(found.groups == most);
}

// What was found for the first n tokens of one window of 7 x 7 after the other, as lists of windows.
std::vector<std::vector<int32_t>> groups_of(const std::vector<int64_t>& counts) {
  const auto columns = static_cast<int64_t>(7 * counts.size());
  std::vector<int64_t> keep;
  for (int64_t window = 0; window * 7 < columns; ++window) {
    for (int64_t i = 0; i < counts[window]; ++i) {
      keep.push_back(i / 7 * columns + window * 7 + i % 7);
    }
  }
  const GroupWindows args = args_of(1, keep, {7, 7, 0}, {columns, 7, 0}, true);
  const Groups found = run(args, serial());
  EXPECT(found.size == *std::max_element(counts.begin(), counts.end()));
  std::vector<std::vector<int32_t>> groups(found.groups);
  for (int64_t slot = 0; slot < found.groups * found.size; ++slot) {
    std::vector<int32_t>& group = groups[slot / found.size];
    if (found.members[slot] >= 0 && (group.empty() || group.back() != found.windows[found.members[slot]])) {
      group.push_back(found.windows[found.members[slot]]);
    }
  }
  return groups;
}

using Lists = std::vector<std::vector<int32_t>>;

void test_published_examples() {
  EXPECT((groups_of({49, 30, 20, 19, 10, 9}) == Lists{{0}, {1, 3}, {2, 4, 5}}));
  EXPECT((groups_of({7, 42, 14, 21, 35, 28, 6, 1}) == Lists{{1}, {0, 2, 3}, {4, 6, 7}, {5}}));
}

int64_t random_below(int64_t limit) { return static_cast<int64_t>(random_bits()() % static_cast<uint64_t>(limit)); }

void test_random_cases() {
  for (int round = 0; round < 300; ++round) {
    const auto random_axis = [] {
      const int64_t side = 1 + random_below(30), window = 1 + random_below(std::min<int64_t>(side, 15));
      return WindowAxis{side, window, random_below(window)};
    };
    const WindowAxis rows = random_axis(), columns = random_axis();
    const int64_t area = rows.side * columns.side, masks = 1 + random_below(4);
    const std::vector<int64_t> keep = unordered_ids({masks, 0, area, random_below(area + 1), 0});
    const GroupWindows args = args_of(masks, keep, rows, columns, round % 2 == 0);
    const Groups wanted = run(args, serial());
    expect_groups(args, wanted);
    const Groups found = run(args, several_threads());
    EXPECT(found.size == wanted.size && found.members == wanted.members && found.windows == wanted.windows);
  }
}

void test_nothing_to_group() {
  for (const int64_t masks : {0, 3}) {
    const Groups found = run(args_of(masks, {}, {5, 2, 1}, {3, 3, 0}, false), serial());
    EXPECT(found.groups == 0 && found.size == 0 && found.members.empty());
  }
}

void test_wrong_ids() {
  for (const auto& [ids, text] : std::map<std::vector<int64_t>, std::string>{
           {{0, 15}, "group_windows: keep must hold ids in [0, N=15), got 15 in image 0"},
           {{4, -1}, "group_windows: keep must hold ids in [0, N=15), got -1 in image 0"},
           {{7, 7}, "group_windows: keep must not repeat an id within an image, got 7 twice in image 0"}}) {
    std::string caught;
    try {
      run(args_of(1, ids, {5, 2, 0}, {3, 2, 0}, false), serial());
    } catch (const Error& error) {
      caught = error.what();
    }
    EXPECT(caught == text);
  }
}

}  // namespace

int main() {
  test_published_examples();
  test_random_cases();
  test_nothing_to_group();
  test_wrong_ids();
  return failures() > 0;
}
