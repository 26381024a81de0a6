// Placements of up to 10^5 allocations: how far above the bound, and how long they take.
#include <array>
#include <ctime>

#include "arena/plan.h"
#include "arena/search.h"
#include "random_work.h"

using namespace bimkern;

namespace {

// The lives of a step's allocations, in one region.
std::vector<Item> items_of(const std::vector<Event>& step) {
  std::vector<Item> items;
  int64_t tick = 0;
  for (const Event& event : step) {
    ++tick;
    if (event.kind == Event::kAllocate) {
      items.push_back({room(event.bytes, kHostAlignment, 0), tick, kForever});
    } else if (event.kind == Event::kFree) {
      items[static_cast<size_t>(event.index)].end = tick;
    }
  }
  return items;
}

// Of training-like steps, always the same ones: how much above the bound they may come on the whole, in percent.
void test_large_cases_against_the_bound() {
  random_bits().seed(7);
  for (const auto& [count, repeats, percent] : {std::array{1'000, 5, 1}, {10'000, 5, 3}, {100'000, 1, 8}}) {
    int64_t heights = 0, bounds = 0;
    for (int repeat = 0; repeat < repeats; ++repeat) {
      const std::vector<Item> items = items_of(random_step(1, count));
      const std::clock_t start = std::clock();
      const Placement placed = place(items);
      heights += placed.height;
      EXPECT(placed.comparisons > 0);
      const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
      bounds += largest_live_sum(items);
      std::fprintf(stderr, "%d allocations placed in %.3f s, %.2f %% above the bound\n", count, seconds,
                   100.0 * static_cast<double>(heights) / static_cast<double>(bounds) - 100);
    }
    EXPECT(heights >= bounds);
    EXPECT(100 * heights <= (100 + percent) * bounds);
  }
}

// A scope without survivors is placed as low as its allocations alone: its search gets all of the work. Always the same
// ones, of which half of the work makes a higher plan.
void test_one_scope_gets_all_of_the_work() {
  random_bits().seed(7);
  Trace trace;
  std::vector<Item> items;
  for (int64_t begin = 1; begin <= 400; ++begin) {
    const int64_t bytes = 64 * (1 + random_below(1000)), end = begin + 1 + random_below(600 - begin);
    trace.allocations.push_back({bytes, begin, end, 0});
    items.push_back({bytes, begin, end});
  }
  trace.scopes.push_back({"step", 0, 601, 0, 400});
  trace.ticks = 602;
  EXPECT(make_plan(trace, 64, 0).peak == place(items).height);
}

}  // namespace

int main() {
  test_large_cases_against_the_bound();
  test_one_scope_gets_all_of_the_work();
  return failures() > 0;
}
