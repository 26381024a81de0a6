// The block arena: activation memory that is planned once and recycled after every scope.
//
// A step is a row of scopes; it ends when the name of one comes again. The first step passes, the second is recorded,
// and from the third on its plan is replayed. What does not fit the plan is served by the upstream. A step that does
// not fit changes nothing (a smaller last batch); when the next does not fit either it is recorded, and planned anew.
//
// Allocations and scopes belong to one owner, a thread or a stream, that opens the first scope; frees may come from any
// thread at any time. After a failed call the arena goes on.
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

// A block that lives on after its scope, against the plan or before there is one.
struct Outlived {
  void* address;
  int64_t bytes;
  std::string scope;
  int32_t order;  // of its allocation in the scope
};

// Says of what is not live whether it is free, or was never the arena's.
[[noreturn]] void throw_not_live(const void* address, bool owned);

class Arena {
 public:
  Arena(Upstream& upstream, bool debug) : upstream_(upstream), guard_(upstream, debug) {}
  ~Arena();  // what is still live of the upstream's memory is given back
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void open(const std::string& scope, Owner owner);
  // `aborted`: the scope was left by an exception. In debug mode throws, after closing, kOverrun for dead canaries and
  // kHandOff for strayed blocks.
  void close(const std::string& scope, Owner owner, bool aborted = false);

  // Inside a scope. bytes > 0.
  void* allocate(int64_t bytes, Owner owner);
  // `strayed`: by a stream that nobody had recorded as a user of the block, which debug mode tells.
  void free(void* address, bool strayed = false);
  // The same, for a caller that has other memory too: false, and nothing happens, where the address is not live here.
  bool try_free(void* address);
  bool is_live(const void* address) const;
  bool owns(const void* address) const;  // in a region, live or not

  // Puts an own plan in force, from the next step on; throws kBadPlan, kNoMemory.
  void adopt(Plan plan);
  bool has_plan() const;
  // The plan in force. If there is none and a whole step was recorded, that is planned now. Throws kBadPlan.
  Plan plan();

  Statistics statistics() const;
  // Of the scope that was closed last; debug mode only.
  std::vector<Outlived> outlived() const;

 private:
  void check_owner(const char* call, Owner owner);
  void end_step();
  void start_step();
  void put_in_force(Plan plan);
  void replan();
  void release(const LiveBlock& block);
  std::string describe(const LiveBlock& block) const;
  bool in_a_region(const void* address) const;
  void* allocate_upstream(int64_t bytes);
  std::vector<Outlived> find_outlived() const;

  mutable std::mutex mutex_;
  Upstream& upstream_;
  Guard guard_;
  AddressTable table_;
  Recorder recorder_;
  std::unique_ptr<Replay> replay_;
  std::vector<std::unique_ptr<Replay>> retired_;  // plans of before that still have live blocks
  std::unique_ptr<Plan> adopted_;                 // waits for the next step

  bool owned_ = false;
  Owner owner_ = 0;
  std::vector<std::string> names_;  // of all scopes so far
  std::set<std::string> seen_;      // in this step
  int32_t open_ = -1;               // of names_
  int32_t order_ = 0;               // allocations of the open scope
  uint32_t visit_ = 0;              // scopes opened so far
  bool stepping_ = false;           // a step has begun
  bool diverged_ = false;           // in this step
  bool aborted_ = false;            // in this step
  int64_t off_plan_ = 0;            // steps in a row that did not fit
  int64_t patience_ = 1;            // so many of them before one is recorded
  int64_t steps_on_plan_ = 0;
  uint32_t plan_id_ = 0;

  std::vector<Outlived> outlived_;
  std::optional<ArenaError> misuse_;  // told when the scope closes
  Statistics statistics_;
  int64_t calls_at_step_ = 0;
  int64_t fallback_peak_ = 0;
};

}  // namespace bimkern
