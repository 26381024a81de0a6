// Scopes, allocations and frees. Contract: arena.h. What happens between steps: steps.cpp.
#include "arena/arena.h"

#include <algorithm>

namespace bimkern {

using Lock = std::lock_guard<std::mutex>;

Arena::~Arena() {
  table_.for_each([&](const LiveBlock& block) {
    if (block.planned < 0) {
      upstream_.deallocate(block.address, block.bytes + guard_.padding());
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
  BIMKERN_ARENA_CHECK(open_ < 0, Fault::kScope, "scope '", scope, "' cannot open inside of '",
                      names_[static_cast<size_t>(open_)], "': scopes follow each other");
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
    outlived_ = find_outlived();
  }
  if (replay_ != nullptr && !replay_->leave(statistics_.outlived)) {
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
  LiveBlock block;
  block.bytes = bytes;
  const Replay::Served served = replay_ == nullptr ? Replay::Served{Replay::Answer::kLeft} : replay_->next(bytes);
  if (served.slot >= 0) {
    block.address = replay_->address(served.slot);
    block.planned = served.slot;
    block.plan = replay_->id();
    ++statistics_.planned;
    statistics_.smaller += served.answer == Replay::Answer::kSmaller;
  } else {
    block.address = allocate_upstream(bytes + guard_.padding());
    statistics_.held += served.answer == Replay::Answer::kHeld;
    statistics_.late += served.answer == Replay::Answer::kLate;
    statistics_.unplanned += served.answer == Replay::Answer::kLeft;
    statistics_.fallback_bytes += bytes;
    fallback_peak_ = std::max(fallback_peak_, statistics_.fallback_bytes);
  }
  // A new plan would not help against what is held for several steps.
  diverged_ = diverged_ || (served.answer != Replay::Answer::kServed && served.answer != Replay::Answer::kHeld);
  if (recorder_.active()) {
    block.recorded = recorder_.allocated(bytes);
    block.session = recorder_.session();
  }
  block.scope = open_;
  block.visit = visit_;
  block.order = order_++;
  table_.insert(block);
  guard_.born(block.address, bytes);
  return block.address;
}

void* Arena::allocate_upstream(int64_t bytes) {
  void* address = upstream_.allocate(bytes);
  BIMKERN_ARENA_CHECK(address != nullptr, Fault::kNoMemory, "no memory for ", bytes, " bytes");
  ++statistics_.upstream_calls;
  return address;
}

void Arena::free(void* address, bool strayed) {
  const Lock lock(mutex_);
  LiveBlock* block = table_.find(address);
  if (block == nullptr) {
    throw_not_live(address, in_a_region(address));
  }
  if (strayed) {
    ++statistics_.strayed;
    misuse_ = ArenaError(Fault::kHandOff, message(describe(*block), " was let go on a stream that was not recorded"));
  }
  release(*block);
  table_.erase(block);
}

bool Arena::try_free(void* address) {
  const Lock lock(mutex_);
  LiveBlock* block = table_.find(address);
  if (block == nullptr) {
    return false;
  }
  release(*block);
  table_.erase(block);
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
  BIMKERN_ARENA_CHECK(!owned, Fault::kDoubleFree, "free of ", address, ", which is in the arena and not live");
  throw ArenaError(Fault::kForeignPointer, message("free of ", address, ", which the arena did not give out"));
}

std::string Arena::describe(const LiveBlock& block) const {
  return message("a block of ", block.bytes, " bytes, allocation ", block.order, " of scope '",
                 names_[static_cast<size_t>(block.scope)], "'");
}

// Everything but the table's entry.
void Arena::release(const LiveBlock& block) {
  if (!guard_.died(block.address, block.bytes)) {
    ++statistics_.overruns;
    misuse_ = ArenaError(Fault::kOverrun, message("something wrote behind ", describe(block)));
  }
  if (recorder_.active() && block.recorded >= 0 && block.session == recorder_.session()) {
    recorder_.freed(block.recorded);
  }
  if (block.planned < 0) {
    statistics_.fallback_bytes -= block.bytes;
    upstream_.deallocate(block.address, block.bytes + guard_.padding());
    return;
  }
  if (replay_ != nullptr && replay_->id() == block.plan) {
    replay_->freed(block.planned);
    return;
  }
  const auto found =
      std::find_if(retired_.begin(), retired_.end(), [&](const auto& r) { return r->id() == block.plan; });
  (*found)->freed(block.planned);
  if ((*found)->num_live() == 0) {
    retired_.erase(found);
  }
}

// What the open scope allocated on this visit and is still alive: all of it without a plan, else what should be dead.
std::vector<Outlived> Arena::find_outlived() const {
  std::vector<Outlived> found;
  table_.for_each([&](const LiveBlock& block) {
    const bool planned = replay_ != nullptr && block.plan == replay_->id() && block.planned >= 0;
    if (block.visit == visit_ && !(planned && replay_->survives(block.planned))) {
      found.push_back({block.address, block.bytes, names_[static_cast<size_t>(open_)], block.order});
    }
  });
  std::sort(found.begin(), found.end(), [](const Outlived& a, const Outlived& b) { return a.order < b.order; });
  return found;
}

std::vector<Outlived> Arena::outlived() const {
  const Lock lock(mutex_);
  return outlived_;
}

Statistics Arena::statistics() const {
  const Lock lock(mutex_);
  Statistics result = statistics_;
  result.live_blocks = static_cast<int64_t>(table_.size());
  result.planned_bytes = result.reserved_bytes = 0;
  const auto add = [&](const Replay& replay) {
    result.planned_bytes += replay.live_bytes();
    result.reserved_bytes += replay.plan().peak();
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
