// Plans: what check() refuses, predecessors, and the table of live allocations.
#include <algorithm>

#include "arena/address_table.h"
#include "caught.h"
#include "random_work.h"

using namespace bimkern;

namespace {

// Scope "a" [0, 7) with an allocation [1, 3), one [2, 9) that survives, and one [4, 6); scope "b" [10, 13) with [11,
// 12).
Trace small_trace() {
  return {
      {{"a", 0, 7, 0, 3}, {"b", 10, 13, 3, 4}}, {{100, 1, 3, 0}, {100, 2, 9, 0}, {100, 4, 6, 0}, {50, 11, 12, 1}}, 14};
}

template <typename F>
void expect_refused(const F& change, const std::string& text) {
  Plan plan = make_plan(small_trace(), 64, 0);
  check(plan);
  change(plan);
  const Caught error = caught([&] { check(plan); });
  EXPECT(error.fault == Fault::kBadPlan);
  EXPECT(error.text == "arena: plan: " + text);
}

void test_bad_plans_are_refused() {
  expect_refused([](Plan& p) { p.alignment = 0; }, "alignment must be positive and padding not negative, got 0 and 0");
  expect_refused([](Plan& p) { p.offsets.pop_back(); }, "4 allocations need as many offsets, got 3");
  expect_refused([](Plan& p) { p.trace.scopes[1].begin = 6; },
                 "scope 'b' must follow the one before it and end inside the step, got [6, 13) of 14 ticks");
  expect_refused([](Plan& p) { p.trace.scopes[1].name = "a"; }, "scope 'a' appears twice");
  expect_refused([](Plan& p) { p.trace.ticks = kForever; }, "a step must have fewer ticks, got 9223372036854775807");
  expect_refused([](Plan& p) { p.trace.scopes[0].last = 2; },
                 "scope 'b' must own the allocations from 2 on, got [3, 4)");
  expect_refused([](Plan& p) { p.trace.scopes.pop_back(); }, "allocation 3 belongs to no scope");
  for (const auto& change : {+[](Allocation& b) { b.bytes = 0; }, +[](Allocation& b) { b.bytes = int64_t{1} << 60; },
                             +[](Allocation& b) { b.scope = 7; }, +[](Allocation& b) { b.begin = 2; },
                             +[](Allocation& b) { b.end = 4; }, +[](Allocation& b) { b.end = 99; }}) {
    expect_refused([&](Plan& p) { change(p.trace.allocations[2]); },
                   "allocation 2 must have a positive size and a lifetime that begins in its scope");
  }
  expect_refused([](Plan& p) { p.offsets[0] = 32; },
                 "allocation 0 must be aligned inside a region of 256 bytes, got offset 32 for 128");
  expect_refused([](Plan& p) { p.offsets[3] = 256; },
                 "allocation 3 must be aligned inside a region of 256 bytes, got offset 256 for 64");
  expect_refused([](Plan& p) { p.trace.allocations[0].end = 5; },
                 "allocations 2 and 0 live at the same time and overlap");
  expect_refused([](Plan& p) { p.bound += 1; }, "the largest live sum is 256, got 257");
}

void test_a_bad_trace_is_not_planned() {
  Trace trace = small_trace();
  trace.allocations[0].scope = 5;
  EXPECT(caught([&] { make_plan(trace, 64, 0); }).fault == Fault::kBadPlan);
}

// Two allocations of 1000 bytes in a scope, the second of which the next scope reads before it needs 2000 of its own:
// the next scope reuses both.
void test_a_scope_reuses_a_survivor_that_died() {
  const Trace trace = {
      {{"a", 0, 5, 0, 2}, {"b", 6, 10, 2, 3}}, {{1000, 1, 3, 0}, {1000, 2, 7, 0}, {2000, 8, 9, 1}}, 11};
  const Plan plan = make_plan(trace, 64, 0);
  check(plan);
  EXPECT(plan.bound == 2048 && plan.peak == 2048);
}

// Gradients that the next step frees at its beginning leave their memory to what comes before they are born again.
void test_a_step_reuses_what_the_step_before_left() {
  const Trace trace = {{{"step", 0, 6, 0, 2}}, {{1000, 2, 3, 0}, {1000, 4, 9, 0}}, 8};
  const Plan plan = make_plan(trace, 64, 0);
  check(plan);
  EXPECT(plan.bound == 1024 && plan.peak == 1024);
  const Predecessors found = predecessors(plan);
  EXPECT((found.allocations == std::vector<int32_t>{0}));
}

// More is kept than the bound has room for from both of its ends.
void test_plans_of_random_work_are_safe() {
  for (int repeat = 0; repeat < 30; ++repeat) {
    Trace trace;
    int64_t tick = 0;
    const int64_t ticks = 400;
    for (int32_t scope = 0; scope < 4; ++scope) {
      const auto first = static_cast<int32_t>(trace.allocations.size());
      const int64_t begin = tick++, end = begin + 1 + random_below(40);
      for (; tick < end; ++tick) {
        const int64_t dies = one_in(8)   ? kForever
                             : one_in(8) ? ticks + random_below(ticks)
                                         : tick + 1 + random_below(one_in(2) ? 10 : ticks - tick - 1);
        trace.allocations.push_back({random_bytes(), tick, dies, scope});
      }
      trace.scopes.push_back(
          {std::to_string(scope), begin, tick++, first, static_cast<int32_t>(trace.allocations.size())});
    }
    trace.ticks = ticks;
    const Plan plan = make_plan(trace, 64, 0);
    check(plan);
    EXPECT(plan.bound <= plan.peak);
    EXPECT(make_plan(trace, 64, 0).offsets == plan.offsets);
  }
}

// Every scope leaves the next one an allocation, as 50000 do in turn at one offset: a plan is no larger than its trace.
void test_many_survivors_in_the_same_memory() {
  Trace trace;
  for (int32_t scope = 0; scope < 50'000; ++scope) {
    const int64_t begin = 4 * int64_t{scope};
    trace.allocations.push_back({64, begin + 1, scope < 49'999 ? begin + 6 : begin + 3, scope});
    trace.scopes.push_back({std::to_string(scope), begin, begin + 3, scope, scope + 1});
  }
  trace.ticks = 200'000;
  const Plan plan = make_plan(trace, 64, 0);
  check(plan);
  EXPECT(predecessors(plan).allocations.empty());
}

// Predecessors against their meaning: the last allocation of the scope at each address before.
void test_predecessors() {
  for (int repeat = 0; repeat < 20; ++repeat) {
    FakeMemory memory;
    Trace trace;
    {
      Arena arena(memory, false);
      const std::vector<Event> step = random_step(3, 60);
      for (int i = 0; i < 2; ++i) {
        std::vector<void*> given;
        for (const Event& event : step) {
          const std::string name = std::to_string(event.index);
          event.kind == Event::kOpen       ? arena.open(name, kOwner)
          : event.kind == Event::kClose    ? arena.close(name, kOwner)
          : event.kind == Event::kAllocate ? given.push_back(arena.allocate(event.bytes, kOwner))
                                           : arena.free(given[static_cast<size_t>(event.index)]);
        }
      }
      trace = arena.plan().trace;
    }
    const Plan plan = make_plan(trace, 64, 0);
    const Predecessors found = predecessors(plan);
    for (size_t i = 0; i < trace.allocations.size(); ++i) {
      std::set<int32_t> want;
      const auto covers = [&](size_t j, int64_t piece) {
        return plan.offsets[j] <= piece && piece < plan.offsets[j] + room(plan, trace.allocations[j]);
      };
      // The owner changes at ends of allocations only.
      std::set<int64_t> pieces = {plan.offsets[i]};
      for (size_t j = 0; j < trace.allocations.size(); ++j) {
        pieces.insert({plan.offsets[j], plan.offsets[j] + room(plan, trace.allocations[j])});
      }
      for (const int64_t piece : pieces) {
        bool found_last = false;
        for (size_t j = trace.allocations.size(); covers(i, piece) && j-- > 0;) {
          const bool survivor = survives(trace, trace.allocations[j]);
          const bool last =
              !found_last && !survivor && j < i && trace.allocations[j].scope == trace.allocations[i].scope;
          if (last && covers(j, piece)) {
            want.insert(static_cast<int32_t>(j));
            found_last = true;
          }
        }
      }
      const std::set<int32_t> got(found.allocations.begin() + found.first[i],
                                  found.allocations.begin() + found.first[i + 1]);
      EXPECT(got == want);
    }
  }
}

void test_address_table() {
  AddressTable table;
  std::map<void*, int64_t> want;
  for (int i = 0; i < 20'000; ++i) {
    void* address = reinterpret_cast<void*>(64 * (1 + random_below(2000)));
    LiveAllocation* found = table.find(address);
    EXPECT((found != nullptr) == (want.count(address) == 1));
    if (found != nullptr) {
      EXPECT(found->bytes == want[address]);
      table.erase(found);
      want.erase(address);
    } else {
      LiveAllocation allocation;
      allocation.address = address;
      allocation.bytes = want[address] = random_bytes();
      table.reserve_one();
      table.insert(allocation);
    }
    EXPECT(table.size() == want.size());
  }
  int64_t count = 0;
  table.for_each([&](const LiveAllocation& allocation) { count += want.at(allocation.address) == allocation.bytes; });
  EXPECT(count == static_cast<int64_t>(want.size()));
}

}  // namespace

int main() {
  test_bad_plans_are_refused();
  test_a_bad_trace_is_not_planned();
  test_a_scope_reuses_a_survivor_that_died();
  test_a_step_reuses_what_the_step_before_left();
  test_plans_of_random_work_are_safe();
  test_many_survivors_in_the_same_memory();
  test_predecessors();
  test_address_table();
  return failures() > 0;
}
