// Random steps, repeated and disturbed, against an oracle: no two live allocations ever overlap, whatever leaves the
// plan.
//   test_arena_random [OPERATIONS]
#include <algorithm>

#include "random_work.h"

using namespace bimkern;

namespace {

struct Disturbance {
  int64_t smaller = 0, larger = 0, extra = 0, dropped_scope = 0, early_free = 0, late_free = 0,
          aborted = 0;  // one in n
};

bool happens(int64_t one_in_n) { return one_in_n > 0 && one_in(one_in_n); }

// Runs steps on an arena, and watches.
class Work {
 public:
  Work(Upstream& upstream, bool debug) : arena_(upstream, debug), oracle_(upstream.alignment()) {}

  void run(const std::vector<Event>& step, const Disturbance& disturbance) {
    std::map<int32_t, void*> mine;
    bool skipping = false, aborting = false;
    for (const Event& event : step) {
      if (event.kind == Event::kOpen) {
        skipping = happens(disturbance.dropped_scope);
        aborting = false;
      }
      aborting = aborting || (event.kind == Event::kAllocate && happens(disturbance.aborted));
      if (skipping) {
        skipping = event.kind != Event::kClose;
        continue;
      }
      if (aborting && event.kind == Event::kAllocate) {
        continue;
      }
      perform(event, aborting, disturbance, mine);
    }
    left_over_.push_back(std::move(mine));
    while (left_over_.size() > 1) {  // what lives into the next step dies at its end
      for (const auto& [index, address] : left_over_.front()) {
        free(address);
      }
      left_over_.erase(left_over_.begin());
    }
  }

  void free_all() {
    for (void* address : late_) {
      free(address);
    }
    late_.clear();
    for (const auto& mine : left_over_) {
      for (const auto& [index, address] : mine) {
        free(address);
      }
    }
    left_over_.clear();
    EXPECT(oracle_.count() == 0);
    EXPECT(arena_.statistics().live_allocations == 0);
    EXPECT(arena_.statistics().planned_bytes == 0 && arena_.statistics().fallback_bytes == 0);
  }

  int64_t operations() const { return operations_; }
  Statistics statistics() const { return arena_.statistics(); }
  Arena& arena() { return arena_; }

 private:
  void perform(const Event& event, bool aborted, const Disturbance& disturbance, std::map<int32_t, void*>& mine) {
    const std::string name = "scope" + std::to_string(event.index);
    switch (event.kind) {
      case Event::kOpen:
        arena_.open(name, kOwner);
        break;
      case Event::kClose:
        arena_.close(name, kOwner, aborted);
        break;
      case Event::kAllocate: {
        int64_t bytes = event.bytes;
        bytes = happens(disturbance.smaller) ? std::max<int64_t>(1, bytes / 2) : bytes;
        bytes = happens(disturbance.larger) ? bytes * 2 + 1 : bytes;
        mine[event.index] = allocate(bytes);
        if (happens(disturbance.extra)) {
          late_.push_back(allocate(random_bytes()));
        }
        if (happens(disturbance.early_free)) {
          free(mine[event.index]);
          mine.erase(event.index);
        }
        break;
      }
      case Event::kFree: {
        const auto found = mine.find(event.index);
        if (found == mine.end()) {
          break;
        }
        if (happens(disturbance.late_free)) {
          late_.push_back(found->second);
        } else {
          free(found->second);
        }
        mine.erase(found);
        break;
      }
    }
    while (late_.size() > 20 || (!late_.empty() && one_in(40))) {
      const auto address = late_.begin() + random_below(static_cast<int64_t>(late_.size()));
      free(*address);
      late_.erase(address);
    }
  }

  void* allocate(int64_t bytes) {
    void* address = arena_.allocate(bytes, kOwner);
    oracle_.born(address, bytes);
    ++operations_;
    return address;
  }

  void free(void* address) {
    oracle_.died(address);
    arena_.free(address);
    ++operations_;
  }

  Arena arena_;
  Oracle oracle_;
  std::vector<std::map<int32_t, void*>> left_over_;
  std::vector<void*> late_;
  int64_t operations_ = 0;
};

// The same step again and again: from the second planned step on nothing comes from the upstream, the peak is the
// plan's, and every allocation has its address again.
void test_steady_state() {
  FakeMemory memory(one_in(2) ? kHostAlignment : kDeviceAlignment);
  {
    Work work(memory, false);
    const std::vector<Event> step = random_step(4, 100);
    for (int i = 0; i < 4; ++i) {
      work.run(step, {});
    }
    const int64_t calls = memory.calls();
    for (int i = 0; i < 6; ++i) {
      work.run(step, {});
    }
    const Statistics now = work.statistics();
    EXPECT(memory.calls() == calls && now.upstream_calls_last_step == 0);
    EXPECT(now.plans == 1 && now.diverged_steps == 0 && now.late == 0 && now.still_in_use == 0 && now.leaked == 0);
    EXPECT(now.fallback_peak == 0);
    EXPECT(now.planned_reach <= work.arena().plan().peak);
    EXPECT(now.planned_live_peak <= now.planned_reach);
    work.free_all();
  }
  EXPECT(memory.live_bytes() == 0 && memory.mistakes() == 0);
}

// One arena sees a few kinds of steps: one that sees many learns to wait before it plans again.
int64_t test_disturbed(int64_t operations, const Disturbance& disturbance) {
  FakeMemory memory;
  Statistics seen;
  {
    Work work(memory, one_in(2));
    while (work.operations() < operations) {
      const std::vector<Event> step =
          random_step(1 + static_cast<int32_t>(random_below(5)), 1 + static_cast<int32_t>(random_below(100)));
      for (int64_t i = 5 + random_below(30); i > 0; --i) {
        work.run(step, one_in(2) ? disturbance : Disturbance{});
      }
    }
    seen = work.statistics();
    work.free_all();
  }
  EXPECT(memory.live_bytes() == 0 && memory.mistakes() == 0);
  return seen.planned;
}

void test_disturbed_arenas(int64_t operations, const Disturbance& disturbance) {
  constexpr int64_t kOfOneArena = 5'000;
  int64_t planned = 0;
  for (int64_t done = 0; done < operations; done += kOfOneArena) {
    planned += test_disturbed(kOfOneArena, disturbance);
  }
  EXPECT(planned > operations / 10);  // else nothing was tested
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t operations = argc > 1 ? std::atoll(argv[1]) : 50'000;
  for (int i = 0; i < 20; ++i) {
    test_steady_state();
  }
  Disturbance all;
  all.smaller = all.larger = all.extra = all.early_free = all.late_free = all.aborted = 500;
  all.dropped_scope = 50;
  const Disturbance one_kind[] = {{20, 0, 0, 0, 0, 0, 0}, {0, 200, 0, 0, 0, 0, 0}, {0, 0, 200, 0, 0, 0, 0},
                                  {0, 0, 0, 5, 0, 0, 0},  {0, 0, 0, 0, 50, 0, 0},  {0, 0, 0, 0, 0, 20, 0},
                                  {0, 0, 0, 0, 0, 0, 200}};
  for (const Disturbance& disturbance : one_kind) {
    test_disturbed_arenas(operations / 10, disturbance);
  }
  test_disturbed_arenas(operations, all);
  return failures() > 0;
}
