// The active plan: owns the region, and serves allocations from it as long as the work follows the plan.
//
// Memory is reused only if it is free, even if allocations are freed late, in another order or not at all. The next
// allocation in the same memory checks its predecessors, and makes one that is still live but should have been freed in
// its scope a straggler; so do the end of a scope and the point where the work leaves the plan. So every live
// allocation is a predecessor of the next one in its memory, a straggler or a survivor; is_free() checks all three.
#pragma once

#include "arena/plan.h"
#include "arena/upstream.h"

namespace bimkern {

class Replay {
 public:
  // Throws kNoMemory, or what the upstream throws.
  Replay(Plan plan, Upstream& upstream, uint32_t id);
  ~Replay();
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  const Plan& plan() const { return plan_; }
  uint32_t id() const { return id_; }
  int64_t num_live() const { return num_live_; }
  void* address(int32_t slot) const { return slots_[static_cast<size_t>(slot)].address; }
  bool survives(int32_t slot) const { return slots_[static_cast<size_t>(slot)].survivor; }
  bool owns(const void* address) const;

  // -> whether the plan knows the scope. next() then serves its allocations in turn, until the scope ends or the work
  // leaves the plan.
  bool enter(const std::string& scope);

  enum class Answer { kServed, kSmaller, kStillInUse, kLate, kLeft };
  struct Served {
    Answer answer;
    int32_t slot = -1;
  };
  // kServed: a slot, with as many bytes as planned; kSmaller: a slot that is larger than needed. The others get none.
  // kStillInUse: of what meets its successor, both slots are still in use. kLate: memory that should be free is
  // not. kLeft: the work has left the plan for the rest of the scope, since the plan has no allocation here or a
  // smaller one.
  Served next(int64_t bytes);
  void freed(int32_t slot);

  // -> whether all of the scope's allocations were requested. Those still live that should have been freed become
  // stragglers, and are counted in `leaked` once.
  bool leave(int64_t& leaked);

  // Bytes of the plan that are live, rounded as planned: now, at most, and the highest end in the region since the last
  // reset.
  void reset_peaks();
  int64_t live_bytes() const { return live_bytes_; }
  int64_t live_peak() const { return live_peak_; }
  int64_t reach() const { return reach_; }

 private:
  struct Slot {
    char* address;
    int64_t bytes;  // as planned
    int64_t room;
    int64_t reach;  // its end, from the start of the region
    int32_t twin;   // the second slot of what meets its successor; -1: none
    bool survivor;
    bool live;
  };

  void make_slots();
  bool is_free(int32_t slot);
  bool shares(int32_t slot) const;
  bool meets_survivor(const Slot& slot) const;
  std::vector<int32_t>::const_iterator survivor_from(const char* address) const;
  void add_stragglers(int32_t first, int32_t last);

  Plan plan_;
  Upstream& upstream_;
  uint32_t id_;
  char* region_ = nullptr;
  std::vector<Slot> slots_;  // one for every allocation, then the twins
  Predecessors predecessors_;
  std::vector<int32_t> stragglers_;
  std::vector<int32_t> survivors_;  // that are live and share memory with others, by rising address
  int32_t scope_ = -1, cursor_ = 0, last_ = 0;
  bool left_ = false;
  int64_t num_live_ = 0, scope_live_ = 0, live_bytes_ = 0, live_peak_ = 0, reach_ = 0;
};

}  // namespace bimkern
