// The arena: activation memory that is planned once and reused by every scope.
//
// A step is a sequence of scopes; it ends when the name of one repeats. The first step runs unrecorded, the second is
// recorded, and from the third on its plan is replayed. The upstream serves what does not fit the plan. One step that
// does not fit changes nothing (a smaller last batch); if the next does not fit either, it is recorded and replanned.
//
// Allocations and scopes belong to one owner: the thread or stream that opens the first scope. Frees may come from any
// thread at any time. The arena stays usable after a failed call.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <set>

#include "arena/address_table.h"
#include "arena/error.h"
#include "arena/guard.h"
#include "arena/recorder.h"
#include "arena/replay.h"
#include "arena/statistics.h"

namespace bimkern {

using Owner = uint64_t;

// An allocation still live after its scope, although planned to be freed in it; without a plan, any such allocation.
struct Leak {
  void* address;
  int64_t bytes;
  std::string scope;
  int32_t order;  // of its allocation in the scope
};

// Throws kDoubleFree for an address that the arena owns, else kForeignPointer.
[[noreturn]] void throw_not_live(const void* address, bool owned);

class Arena {
 public:
  Arena(Upstream& upstream, bool debug) : upstream_(upstream), guard_(upstream, debug) {}
  ~Arena();  // returns all memory to the upstream
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void open(const std::string& scope, Owner owner);
  // `aborted`: the scope was left by an exception. In debug mode throws, after closing, kOverrun for overwritten
  // canaries and kUnsynchronizedFree.
  void close(const std::string& scope, Owner owner, bool aborted = false);

  // Inside a scope. bytes > 0.
  void* allocate(int64_t bytes, Owner owner);
  // `unsynchronized`: on a stream that was not recorded as a user of the allocation; debug mode reports it.
  void free(void* address, bool unsynchronized = false);
  // The same for a caller with several allocators: returns false and does nothing if the address is not live here.
  bool try_free(void* address);
  bool is_live(const void* address) const;
  bool owns(const void* address) const;  // in a region, live or not

  // Activates the caller's plan with the next step. Throws kBadPlan.
  void adopt(Plan plan);
  bool has_plan() const;
  // The active plan. If there is none but a whole step was recorded, plans that one. Throws kBadPlan.
  Plan plan();

  Statistics statistics() const;
  // Of the scope that closed last; debug mode only.
  std::vector<Leak> leaks() const;

 private:
  void check_owner(const char* call, Owner owner);
  void end_step();
  void start_step();
  void activate(Plan plan);
  void replan();
  void release(const LiveAllocation& allocation);
  std::string describe(const LiveAllocation& allocation) const;
  bool in_a_region(const void* address) const;
  void* allocate_upstream(int64_t bytes);
  std::vector<Leak> find_leaks() const;

  mutable std::mutex mutex_;
  Upstream& upstream_;
  Guard guard_;
  AddressTable table_;
  Recorder recorder_;
  std::unique_ptr<Replay> replay_;
  std::vector<std::unique_ptr<Replay>> retired_;  // earlier plans that still have live allocations
  std::unique_ptr<Plan> adopted_;                 // becomes active with the next step

  bool owned_ = false;
  Owner owner_ = 0;
  std::vector<std::string> names_;  // of all scopes so far
  std::set<std::string> seen_;      // in this step
  int32_t open_ = -1;               // of names_
  int32_t order_ = 0;               // allocations of the open scope
  uint32_t visit_ = 0;              // scopes opened so far
  uint32_t last_visit_ = 0;         // of the step before
  uint32_t visit_before_last_ = 0;  // of the one before that
  bool stepping_ = false;           // a step has begun
  bool diverged_ = false;           // in this step
  bool aborted_ = false;            // in this step
  int64_t off_plan_ = 0;            // steps in a row that did not fit
  int64_t patience_ = 1;            // as many of them before one is recorded
  int64_t steps_on_plan_ = 0;
  uint32_t plan_id_ = 0;

  std::vector<Leak> leaks_;
  std::optional<ArenaError> misuse_;  // reported when the scope closes
  Statistics statistics_;
  int64_t calls_at_step_ = 0;
  int64_t fallback_peak_ = 0;
};

}  // namespace bimkern
