// The arena's life: a step that passes, one that is recorded, plans that are replayed, left and replaced.
#include <algorithm>

#include "random_work.h"

using namespace bimkern;

namespace {

// Two scopes. The first puts out `output`, which dies in the second; `state` lives into the next step.
class Step {
 public:
  explicit Step(Arena& arena) : arena_(arena) {}
  ~Step() {
    if (state_ != nullptr) {
      arena_.free(state_);
    }
  }

  // Returns the addresses, in order. scale: of every size; with_head: whether the second scope runs.
  std::vector<void*> run(int64_t scale = 1, bool with_head = true) {
    std::vector<void*> given;
    const auto allocate = [&](int64_t bytes) {
      given.push_back(arena_.allocate(bytes * scale, kOwner));
      return given.back();
    };
    arena_.open("layer", kOwner);
    void* a = allocate(1000);
    void* output = allocate(300);
    void* b = allocate(500);
    arena_.free(a);
    arena_.free(b);
    arena_.close("layer", kOwner);
    if (with_head) {
      arena_.open("head", kOwner);
      void* c = allocate(2000);
      arena_.free(output);
      void* next = allocate(8);
      if (state_ != nullptr) {
        arena_.free(state_);
      }
      state_ = next;
      arena_.free(c);
      arena_.close("head", kOwner);
    } else {
      arena_.free(output);
    }
    return given;
  }

 private:
  Arena& arena_;
  void* state_ = nullptr;
};

// room() of the sizes above
constexpr int64_t kBound = 2048 + 320 + 64, kPeak = kBound + 64;  // the state has two slots

void test_a_plan_is_active_from_the_third_step_on() {
  FakeMemory memory;
  Arena arena(memory, false);
  Step step(arena);
  step.run();
  EXPECT(!arena.has_plan() && memory.calls() == 5);
  step.run();
  EXPECT(memory.calls() == 10);
  const Plan plan = arena.plan();
  EXPECT(plan.peak == kPeak && plan.bound == kBound);
  step.run();
  EXPECT(arena.has_plan() && memory.calls() == 11);  // the region
  EXPECT(arena.plan().offsets == plan.offsets);
  const std::vector<void*> fourth = step.run(), fifth = step.run();
  EXPECT(memory.calls() == 11 && arena.statistics().upstream_calls == 11);
  EXPECT(std::equal(fourth.begin(), fourth.end() - 1, fifth.begin()));
  EXPECT(fourth.back() != fifth.back());  // the state: the old one was alive when the new one was born
  EXPECT(step.run().back() == fourth.back());
  const Statistics now = arena.statistics();
  EXPECT(now.steps == 5 && now.plans == 1 && now.planned == 4 * 5 && now.unplanned == 2 * 5);
  EXPECT(now.planned_reach == plan.peak && now.planned_live_peak == kBound);
  EXPECT(now.upstream_calls_last_step == 0 && now.fallback_peak == 0 && now.reserved_bytes == plan.peak);
}

// As gradients that a step frees at its beginning: one slot is enough, and the bound knows of both ends.
void test_what_dies_before_its_successor_is_born_has_one_slot() {
  FakeMemory memory;
  Arena arena(memory, false);
  void* gradient = nullptr;
  std::vector<void*> given;
  const auto run = [&](bool early) {
    arena.open("step", kOwner);
    if (early && gradient != nullptr) {
      arena.free(gradient);
    }
    void* activation = arena.allocate(1000, kOwner);
    void* old = gradient;
    gradient = arena.allocate(4000, kOwner);
    given.push_back(gradient);
    if (!early && old != nullptr) {
      arena.free(old);
    }
    arena.free(activation);
    arena.close("step", kOwner);
  };
  for (int i = 0; i < 5; ++i) {
    run(true);
  }
  const Plan plan = arena.plan();
  EXPECT(plan.peak == 4032 + 1024 && plan.bound == plan.peak);
  EXPECT(given[3] == given[4] && arena.statistics().planned_live_peak == plan.bound);
  run(false);  // the old one is still alive: the upstream serves
  EXPECT(arena.statistics().late == 1 && !arena.owns(given.back()));
  run(true);
  run(true);
  EXPECT(given.back() == given[4] && arena.statistics().plans == 1);
  arena.free(gradient);
}

void test_a_smaller_batch_is_served_in_place_and_changes_nothing() {
  FakeMemory memory;
  Arena arena(memory, false);
  Step step(arena);
  for (int i = 0; i < 4; ++i) {
    step.run(2);
  }
  const std::vector<void*> before = step.run(2);
  const std::vector<void*> small = step.run(1);
  EXPECT(std::equal(before.begin(), before.end() - 1, small.begin()));
  EXPECT(step.run(2).front() == before.front());
  step.run(2);
  const Statistics now = arena.statistics();
  EXPECT(now.plans == 1 && now.smaller == 5 && now.diverged_steps == 1 && memory.calls() == 11);
}

void test_larger_work_is_served_by_the_upstream_and_replanned() {
  FakeMemory memory;
  Arena arena(memory, false);
  Step step(arena);
  for (int i = 0; i < 4; ++i) {
    step.run();
  }
  EXPECT(memory.calls() == 11);
  step.run(3);  // does not fit
  EXPECT(memory.calls() == 16);
  step.run(3);  // does not fit again: recorded
  EXPECT(memory.calls() == 21);
  step.run(3);  // planned
  step.run(3);
  const Statistics now = arena.statistics();
  EXPECT(now.plans == 2 && now.diverged_steps == 2 && memory.calls() == 22);
  EXPECT(arena.plan().peak == 6016 + 960 + 2 * 64 && now.reserved_bytes == arena.plan().peak);
}

void test_a_dropped_scope_needs_no_new_plan() {
  FakeMemory memory;
  Arena arena(memory, false);
  Step step(arena);
  for (int i = 0; i < 3; ++i) {
    step.run();
  }
  const std::vector<void*> whole = step.run();
  const std::vector<void*> part = step.run(1, false);
  EXPECT(std::equal(part.begin(), part.end(), whole.begin()));
  EXPECT(memory.calls() == 11 && arena.statistics().unplanned == 10);
}

void test_a_new_scope_is_served_by_the_upstream_and_planned() {
  FakeMemory memory;
  Arena arena(memory, false);
  Step step(arena);
  for (int i = 0; i < 4; ++i) {
    step.run(1, false);
  }
  const int64_t calls = memory.calls();
  step.run();
  EXPECT(memory.calls() == calls + 2);
  for (int i = 0; i < 4; ++i) {
    step.run();
  }
  EXPECT(arena.statistics().plans == 2 && arena.statistics().upstream_calls_last_step == 0);
}

void test_what_leaks_from_its_scope_keeps_its_memory() {
  FakeMemory memory;
  Arena arena(memory, true);
  std::vector<void*> leaked;
  const auto run = [&](bool leak) {
    arena.open("layer", kOwner);
    void* a = arena.allocate(1000, kOwner);
    void* b = arena.allocate(500, kOwner);
    arena.free(b);
    if (leak) {
      leaked.push_back(a);
    } else {
      arena.free(a);
    }
    arena.close("layer", kOwner);
    return a;
  };
  for (int i = 0; i < 4; ++i) {
    run(false);
  }
  void* planned = run(true);
  const std::vector<Leak> found = arena.leaks();
  EXPECT(found.size() == 1 && found[0].address == planned && found[0].bytes == 1000);
  EXPECT(found[0].scope == "layer" && found[0].order == 0);
  EXPECT(arena.statistics().leaked == 1);
  const int64_t calls = memory.calls();
  EXPECT(run(false) != planned && memory.calls() == calls + 1 && arena.statistics().late == 1);
  EXPECT(arena.leaks().empty());
  arena.free(planned);
  EXPECT(run(false) == planned);
}

// A trainer may keep ten losses before it looks at them: the slots are two, and no new plan would change that.
void test_what_is_in_use_for_many_steps_needs_no_new_plan() {
  FakeMemory memory;
  Arena arena(memory, false);
  std::vector<void*> losses;
  for (int i = 0; i < 40; ++i) {
    arena.open("layer", kOwner);
    losses.push_back(arena.allocate(4, kOwner));
    arena.close("layer", kOwner);
    if (losses.size() == 10) {
      std::for_each(losses.begin(), losses.end(), [&](void* loss) { arena.free(loss); });
      losses.clear();
    }
  }
  const Statistics now = arena.statistics();
  EXPECT(now.plans == 1 && now.diverged_steps == 0 && now.still_in_use > 0 && now.planned > 0);
}

void test_work_that_never_repeats_is_not_planned_again_and_again() {
  FakeMemory memory;
  Arena arena(memory, false);
  for (int64_t i = 0; i < 1000; ++i) {
    arena.open("layer", kOwner);
    arena.free(arena.allocate(64 * (i + 1), kOwner));
    arena.close("layer", kOwner);
  }
  EXPECT(arena.statistics().plans < 30);
}

void test_a_plan_can_be_taken_over() {
  FakeMemory memory;
  Arena first(memory, false), second(memory, false);
  Step step(first), again(second);
  step.run();
  step.run();
  second.adopt(first.plan());
  EXPECT(second.has_plan() && second.plan().offsets == first.plan().offsets);
  again.run();
  again.run();
  EXPECT(second.statistics().planned == 10 && second.statistics().unplanned == 0);
}

}  // namespace

int main() {
  test_a_plan_is_active_from_the_third_step_on();
  test_what_dies_before_its_successor_is_born_has_one_slot();
  test_a_smaller_batch_is_served_in_place_and_changes_nothing();
  test_larger_work_is_served_by_the_upstream_and_replanned();
  test_a_dropped_scope_needs_no_new_plan();
  test_a_new_scope_is_served_by_the_upstream_and_planned();
  test_what_leaks_from_its_scope_keeps_its_memory();
  test_what_is_in_use_for_many_steps_needs_no_new_plan();
  test_work_that_never_repeats_is_not_planned_again_and_again();
  test_a_plan_can_be_taken_over();
  return failures() > 0;
}
