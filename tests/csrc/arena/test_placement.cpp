// Placements: never an overlap, never below the bound, and on nearly all small cases as low as brute force.
#include <algorithm>
#include <numeric>

#include "arena/search.h"
#include "random_work.h"

using namespace bimkern;

namespace {

std::vector<Item> random_items(int count, int64_t ticks) {
  std::vector<Item> items;
  for (int i = 0; i < count; ++i) {
    const int64_t begin = random_below(ticks);
    items.push_back({64 * (1 + random_below(12)), begin, begin + 1 + random_below(ticks - begin)});
  }
  return items;
}

bool valid(const std::vector<Item>& items, const Placement& placement) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (placement.offsets[i] < 0 || placement.offsets[i] + items[i].bytes > placement.height) {
      return false;
    }
    for (size_t j = 0; j < i; ++j) {
      const bool in_time = items[i].begin < items[j].end && items[j].begin < items[i].end;
      const bool in_space = placement.offsets[i] < placement.offsets[j] + items[j].bytes &&
                            placement.offsets[j] < placement.offsets[i] + items[i].bytes;
      if (in_time && in_space) {
        return false;
      }
    }
  }
  return true;
}

// The optimum: sorted by offset, the items of a lowest placement can be put at the first gap one by one.
int64_t brute_force(const std::vector<Item>& items) {
  std::vector<int32_t> order(items.size());
  std::iota(order.begin(), order.end(), 0);
  int64_t lowest = kForever;
  do {
    lowest = std::min(lowest, place_in_order(items, order, Fit::kFirst).height);
  } while (std::next_permutation(order.begin(), order.end()));
  return lowest;
}

// The search misses the optimum of about one in 10^6 such cases: two of 145 would show a fault.
void test_small_cases_against_brute_force() {
  int missed = 0;
  for (int count = 0; count <= 8; ++count) {
    for (int repeat = 0; repeat < (count < 7 ? 20 : count < 8 ? 4 : 1); ++repeat) {
      const std::vector<Item> items = random_items(count, 12);
      const Placement found = place(items);
      const int64_t lowest = brute_force(items);
      EXPECT(valid(items, found));
      EXPECT(largest_live_sum(items) <= lowest);
      EXPECT(found.height >= lowest);
      missed += found.height > lowest;
    }
  }
  EXPECT(missed <= 1);
}

void test_every_form_is_valid() {
  for (int repeat = 0; repeat < 20; ++repeat) {
    const std::vector<Item> items = random_items(200, 300);
    std::vector<int32_t> order(items.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_bits());
    for (const Fit fit : {Fit::kFirst, Fit::kBest}) {
      EXPECT(valid(items, place_in_order(items, order, fit)));
      EXPECT(valid(items, place_by_time(items, fit)));
    }
    const int64_t work = kSearchWork / 100, enough = place_by_time(items, Fit::kBest).height;
    const Placement found = place(items, 0, work);
    EXPECT(valid(items, found) && found.height >= largest_live_sum(items));
    EXPECT(place(items, 0, work).offsets == found.offsets);
    EXPECT(place(items, enough, work).height >= found.height);
  }
}

// Items around fixed ones: together they are valid, and the height is that of the items alone.
void test_around_fixed_items() {
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::vector<Item> items = random_items(60, 100);
    const Item first = random_items(1, 100)[0], second = random_items(1, 100)[0];
    const std::vector<Placed> fixed = {{0, first.bytes, first.begin, first.end},
                                       {1024, 1024 + second.bytes, second.begin, second.end}};
    Placement found = place(items, 0, kSearchWork / 1000, fixed);
    int64_t height = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      height = std::max(height, found.offsets[i] + items[i].bytes);
    }
    EXPECT(found.height == height);
    items.insert(items.end(), {first, second});
    found.offsets.insert(found.offsets.end(), {0, 1024});
    found.height = std::max(found.height, fixed[1].top);
    EXPECT(valid(items, found));
  }
}

void test_an_order_is_given_up_above_a_height() {
  const std::vector<Item> items(4, {64, 0, 1});
  EXPECT(place_in_order(items, {0, 1, 2, 3}, Fit::kFirst, {}, 256).height == 256);
  const Placement given_up = place_in_order(items, {0, 1, 2, 3}, Fit::kFirst, {}, 100);
  EXPECT(given_up.height == 128 && given_up.comparisons == 1);
}

// However little work is allowed, a placement is valid, and it says how much it took.
void test_little_work() {
  for (int64_t work = 0; work < 10; ++work) {
    std::vector<Item> items = random_items(30, 12);
    items[7].bytes = int64_t{1} << 20;
    EXPECT(valid(items, place(items, 0, work)));
    EXPECT(place(items, 0, work, {{0, 64, 0, 12}}).comparisons > 0);
  }
}

}  // namespace

int main() {
  test_small_cases_against_brute_force();
  test_every_form_is_valid();
  test_around_fixed_items();
  test_an_order_is_given_up_above_a_height();
  test_little_work();
  return failures() > 0;
}
