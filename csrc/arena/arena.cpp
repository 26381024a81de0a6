// Scopes, allocations and frees. Contract: arena.h. What happens between steps: steps.cpp.
#include "arena/arena.h"

#include <algorithm>

namespace bimkern {

using Lock = std::lock_guard<std::mutex>;

Arena::~Arena() {
  table_.for_each([&](const LiveAllocation& allocation) {
    if (allocation.planned < 0) {
      upstream_.deallocate(allocation.address, allocation.bytes + guard_.padding());
    }
  });
}

void Arena::check_owner(const char* call, Owner owner) {
  BIMKERN_ARENA_CHECK(!owned_ || owner == owner_, Fault::kWrongOwner, call,
                      " must come from the thread or stream that opened the first scope");
}

void Arena::open(const std::string& scope, Owner owner) {
  const Lock lock(mutex_);
  check_owner("open", owner);
  BIMKERN_ARENA_CHECK(open_ < 0, Fault::kScope, "scope '", scope, "' cannot open inside '",
                      names_[static_cast<size_t>(open_)], "': scopes cannot nest");
  owned_ = true;
  owner_ = owner;
  if (!stepping_ || seen_.count(scope) > 0) {
    if (stepping_) {
      end_step();
    }
    start_step();
  }
  seen_.insert(scope);
  const auto found = std::find(names_.begin(), names_.end(), scope);
  open_ = static_cast<int32_t>(found - names_.begin());
  if (found == names_.end()) {
    names_.push_back(scope);
  }
  order_ = 0;
  ++visit_;
  if (recorder_.active()) {
    recorder_.open(scope);
  }
  if (replay_ != nullptr && !replay_->enter(scope)) {
    diverged_ = true;
  }
}

void Arena::close(const std::string& scope, Owner owner, bool aborted) {
  const Lock lock(mutex_);
  check_owner("close", owner);
  BIMKERN_ARENA_CHECK(open_ >= 0, Fault::kScope, "scope '", scope, "' cannot close: none is open");
  BIMKERN_ARENA_CHECK(names_[static_cast<size_t>(open_)] == scope, Fault::kScope, "scope '", scope,
                      "' cannot close: the open one is '", names_[static_cast<size_t>(open_)], "'");
  if (recorder_.active()) {
    recorder_.close();
  }
  if (guard_.on()) {
    leaks_ = find_leaks();
  }
  if (replay_ != nullptr && !replay_->leave(statistics_.leaked)) {
    diverged_ = true;
  }
  aborted_ = aborted_ || aborted;
  open_ = -1;
  if (misuse_) {
    const ArenaError misuse = *misuse_;
    misuse_.reset();
    throw misuse;
  }
}

void* Arena::allocate(int64_t bytes, Owner owner) {
  const Lock lock(mutex_);
  check_owner("allocate", owner);
  BIMKERN_ARENA_CHECK(open_ >= 0, Fault::kScope, "allocate needs an open scope");
  BIMKERN_ARENA_CHECK(bytes > 0, Fault::kBadSize, "allocate needs at least 1 byte, got ", bytes);
  table_.reserve_one();
  LiveAllocation allocation;
  allocation.bytes = bytes;
  const Replay::Served served = replay_ == nullptr ? Replay::Served{Replay::Answer::kLeft} : replay_->next(bytes);
  if (served.slot >= 0) {
    allocation.address = replay_->address(served.slot);
    allocation.planned = served.slot;
    allocation.plan = replay_->id();
    ++statistics_.planned;
    statistics_.smaller += served.answer == Replay::Answer::kSmaller;
  } else {
    allocation.address = allocate_upstream(bytes + guard_.padding());
    statistics_.still_in_use += served.answer == Replay::Answer::kStillInUse;
    statistics_.late += served.answer == Replay::Answer::kLate;
    statistics_.unplanned += served.answer == Replay::Answer::kLeft;
    statistics_.fallback_bytes += bytes;
    fallback_peak_ = std::max(fallback_peak_, statistics_.fallback_bytes);
  }
  // A new plan would not help against allocations that stay in use for several steps.
  diverged_ = diverged_ || (served.answer != Replay::Answer::kServed && served.answer != Replay::Answer::kStillInUse);
  if (recorder_.active()) {
    allocation.recorded = recorder_.allocated(bytes);
    allocation.session = recorder_.session();
  }
  allocation.scope = open_;
  allocation.visit = visit_;
  allocation.order = order_++;
  table_.insert(allocation);
  guard_.born(allocation.address, bytes);
  return allocation.address;
}

void* Arena::allocate_upstream(int64_t bytes) {
  void* address = upstream_.allocate(bytes);
  BIMKERN_ARENA_CHECK(address != nullptr, Fault::kNoMemory, "no memory for ", bytes, " bytes");
  ++statistics_.upstream_calls;
  return address;
}

void Arena::free(void* address, bool unsynchronized) {
  const Lock lock(mutex_);
  LiveAllocation* allocation = table_.find(address);
  if (allocation == nullptr) {
    throw_not_live(address, in_a_region(address));
  }
  if (unsynchronized) {
    ++statistics_.unsynchronized_frees;
    misuse_ =
        ArenaError(Fault::kUnsynchronizedFree,
                   message(describe(*allocation),
                           " was freed on a stream that does not own it; call record_stream with that stream first"));
  }
  release(*allocation);
  table_.erase(allocation);
}

bool Arena::try_free(void* address) {
  const Lock lock(mutex_);
  LiveAllocation* allocation = table_.find(address);
  if (allocation == nullptr) {
    return false;
  }
  release(*allocation);
  table_.erase(allocation);
  return true;
}

bool Arena::is_live(const void* address) const {
  const Lock lock(mutex_);
  return table_.find(address) != nullptr;
}

bool Arena::owns(const void* address) const {
  const Lock lock(mutex_);
  return in_a_region(address);
}

bool Arena::in_a_region(const void* address) const {
  return (replay_ != nullptr && replay_->owns(address)) ||
         std::any_of(retired_.begin(), retired_.end(), [&](const auto& r) { return r->owns(address); });
}

void throw_not_live(const void* address, bool owned) {
  BIMKERN_ARENA_CHECK(!owned, Fault::kDoubleFree, "free of ", address, ", which the arena owns but is not live");
  throw ArenaError(Fault::kForeignPointer, message("free of ", address, ", which the arena did not allocate"));
}

std::string Arena::describe(const LiveAllocation& allocation) const {
  return message("allocation ", allocation.order, " of scope '", names_[static_cast<size_t>(allocation.scope)], "' (",
                 allocation.bytes, " bytes)");
}

// Everything but the table's entry.
void Arena::release(const LiveAllocation& allocation) {
  if (!guard_.died(allocation.address, allocation.bytes)) {
    ++statistics_.overruns;
    misuse_ = ArenaError(Fault::kOverrun, message("write past the end of ", describe(allocation)));
  }
  if (recorder_.active() && allocation.recorded >= 0 && allocation.session == recorder_.session()) {
    recorder_.freed(allocation.recorded);
  } else if (recorder_.active() && visit_before_last_ < allocation.visit && allocation.visit <= last_visit_) {
    recorder_.freed_late(names_[static_cast<size_t>(allocation.scope)], allocation.order, allocation.bytes);
  }
  if (allocation.planned < 0) {
    statistics_.fallback_bytes -= allocation.bytes;
    upstream_.deallocate(allocation.address, allocation.bytes + guard_.padding());
    return;
  }
  if (replay_ != nullptr && replay_->id() == allocation.plan) {
    replay_->freed(allocation.planned);
    return;
  }
  const auto found =
      std::find_if(retired_.begin(), retired_.end(), [&](const auto& r) { return r->id() == allocation.plan; });
  (*found)->freed(allocation.planned);
  if ((*found)->num_live() == 0) {
    retired_.erase(found);
  }
}

// What the open scope allocated on this visit and is still live; with a plan, only what should have been freed.
std::vector<Leak> Arena::find_leaks() const {
  std::vector<Leak> found;
  table_.for_each([&](const LiveAllocation& allocation) {
    const bool planned = replay_ != nullptr && allocation.plan == replay_->id() && allocation.planned >= 0;
    if (allocation.visit == visit_ && !(planned && replay_->survives(allocation.planned))) {
      found.push_back({allocation.address, allocation.bytes, names_[static_cast<size_t>(open_)], allocation.order});
    }
  });
  std::sort(found.begin(), found.end(), [](const Leak& a, const Leak& b) { return a.order < b.order; });
  return found;
}

std::vector<Leak> Arena::leaks() const {
  const Lock lock(mutex_);
  return leaks_;
}

Statistics Arena::statistics() const {
  const Lock lock(mutex_);
  Statistics result = statistics_;
  result.live_allocations = static_cast<int64_t>(table_.size());
  result.planned_bytes = result.reserved_bytes = 0;
  const auto add = [&](const Replay& replay) {
    result.planned_bytes += replay.live_bytes();
    result.reserved_bytes += replay.plan().peak;
  };
  if (replay_ != nullptr) {
    add(*replay_);
  }
  for (const auto& replay : retired_) {
    add(*replay);
  }
  return result;
}

}  // namespace bimkern
