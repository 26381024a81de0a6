// Contract: replay.h.
#include "arena/replay.h"

#include <algorithm>
#include <iterator>

#include "arena/error.h"

namespace bimkern {
namespace {

char* reserve(Upstream& upstream, int64_t bytes) {
  if (bytes == 0) {
    return nullptr;
  }
  void* address = upstream.allocate(bytes);
  BIMKERN_ARENA_CHECK(address != nullptr, Fault::kNoMemory, "no memory for a region of ", bytes, " bytes");
  return static_cast<char*>(address);
}

}  // namespace

Replay::Replay(Plan plan, Upstream& upstream, uint32_t id)
    : plan_(std::move(plan)), upstream_(upstream), id_(id), predecessors_(predecessors(plan_)) {
  region_ = reserve(upstream_, plan_.peak);
  make_slots();
}

void Replay::make_slots() {
  const std::vector<Allocation>& allocations = plan_.trace.allocations;
  const auto add = [&](size_t allocation, bool second) {
    const bool survivor = bimkern::survives(plan_.trace, allocations[allocation]);
    const int64_t taken = room(plan_, allocations[allocation]);
    const int64_t offset = plan_.offsets[allocation] + (second ? taken : 0);
    slots_.push_back({region_ + offset, allocations[allocation].bytes, taken, offset + taken, -1, survivor, false});
  };
  for (size_t i = 0; i < allocations.size(); ++i) {
    add(i, false);
  }
  for (size_t i = 0; i < allocations.size(); ++i) {
    if (meets_successor(plan_.trace, allocations[i])) {
      slots_[i].twin = static_cast<int32_t>(slots_.size());
      add(i, true);
    }
  }
  stragglers_.reserve(slots_.size());
  survivors_.reserve(plan_.offsets.size());  // no step allocates for them
}

Replay::~Replay() {
  if (region_ != nullptr) {
    upstream_.deallocate(region_, plan_.peak);
  }
}

bool Replay::owns(const void* address) const {
  const char* byte = static_cast<const char*>(address);
  return region_ <= byte && byte < region_ + plan_.peak;
}

bool Replay::enter(const std::string& name) {
  const std::vector<ScopeSpan>& scopes = plan_.trace.scopes;
  const auto found = std::find_if(scopes.begin(), scopes.end(), [&](const ScopeSpan& s) { return s.name == name; });
  left_ = found == scopes.end();
  scope_ = left_ ? -1 : static_cast<int32_t>(found - scopes.begin());
  cursor_ = left_ ? 0 : found->first;
  last_ = left_ ? 0 : found->last;
  return !left_;
}

bool Replay::is_free(int32_t index) {
  const Slot& slot = slots_[static_cast<size_t>(index)];
  const auto overlaps = [&](int32_t other) {
    const Slot& taken = slots_[static_cast<size_t>(other)];
    return taken.address < slot.address + slot.room && slot.address < taken.address + taken.room;
  };
  if (slot.live) {
    return false;
  }
  if (static_cast<size_t>(index) >= plan_.offsets.size()) {  // a twin, whose memory is its own
    return true;
  }
  bool free = std::none_of(stragglers_.begin(), stragglers_.end(), overlaps) && !meets_survivor(slot);
  const int32_t* edge = predecessors_.allocations.data() + predecessors_.first[static_cast<size_t>(index)];
  const int32_t* end = predecessors_.allocations.data() + predecessors_.first[static_cast<size_t>(index) + 1];
  for (; edge != end; ++edge) {
    if (slots_[static_cast<size_t>(*edge)].live) {
      add_stragglers(*edge, *edge + 1);
      free = false;
    }
  }
  return free;
}

// Whether a slot is that of a survivor in whose memory others may be before and after it.
bool Replay::shares(int32_t index) const {
  const Slot& slot = slots_[static_cast<size_t>(index)];
  return slot.survivor && slot.twin < 0 && static_cast<size_t>(index) < plan_.offsets.size();
}

std::vector<int32_t>::const_iterator Replay::survivor_from(const char* address) const {
  return std::lower_bound(survivors_.begin(), survivors_.end(), address, [&](int32_t other, const char* start) {
    return slots_[static_cast<size_t>(other)].address < start;
  });
}

// Those that are live do not overlap: the two around an address are enough.
bool Replay::meets_survivor(const Slot& slot) const {
  const auto above = survivor_from(slot.address);
  if (above != survivors_.end() && slots_[static_cast<size_t>(*above)].address < slot.address + slot.room) {
    return true;
  }
  if (above == survivors_.begin()) {
    return false;
  }
  const Slot& below = slots_[static_cast<size_t>(*std::prev(above))];
  return slot.address < below.address + below.room;
}

Replay::Served Replay::next(int64_t bytes) {
  if (left_) {
    return {Answer::kLeft};
  }
  if (cursor_ == last_ || bytes > slots_[static_cast<size_t>(cursor_)].bytes) {
    left_ = true;
    return {Answer::kLeft};
  }
  int32_t index = cursor_++;
  if (!is_free(index)) {
    index = slots_[static_cast<size_t>(index)].twin;
    if (index < 0) {
      return {Answer::kLate};
    }
    if (!is_free(index)) {
      return {Answer::kStillInUse};
    }
  }
  Slot& slot = slots_[static_cast<size_t>(index)];
  slot.live = true;
  if (shares(index)) {
    survivors_.insert(survivor_from(slot.address), index);
  }
  ++num_live_;
  scope_live_ += !slot.survivor;
  live_bytes_ += slot.room;
  live_peak_ = std::max(live_peak_, live_bytes_);
  reach_ = std::max(reach_, slot.reach);
  return {bytes == slot.bytes ? Answer::kServed : Answer::kSmaller, index};
}

void Replay::freed(int32_t index) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  slot.live = false;
  if (shares(index)) {
    survivors_.erase(survivor_from(slot.address));
  }
  --num_live_;
  scope_live_ -= !slot.survivor;
  live_bytes_ -= slot.room;
  if (!stragglers_.empty()) {
    stragglers_.erase(std::remove(stragglers_.begin(), stragglers_.end(), index), stragglers_.end());
  }
}

bool Replay::leave(int64_t& leaked) {
  const bool whole = !left_ && cursor_ == last_;
  if (scope_live_ > static_cast<int64_t>(stragglers_.size())) {
    const ScopeSpan& scope = plan_.trace.scopes[static_cast<size_t>(scope_)];
    const size_t before = stragglers_.size();
    add_stragglers(scope.first, scope.last);
    leaked += static_cast<int64_t>(stragglers_.size() - before);
  }
  left_ = true;
  return whole;
}

void Replay::add_stragglers(int32_t first, int32_t last) {
  for (int32_t allocation = first; allocation < last; ++allocation) {
    const Slot& slot = slots_[static_cast<size_t>(allocation)];
    if (slot.live && !slot.survivor &&
        std::find(stragglers_.begin(), stragglers_.end(), allocation) == stragglers_.end()) {
      stragglers_.push_back(allocation);
    }
  }
}

void Replay::reset_peaks() {
  live_peak_ = live_bytes_;
  reach_ = 0;
  for (const Slot& slot : slots_) {
    if (slot.live) {
      reach_ = std::max(reach_, slot.reach);
    }
  }
}

}  // namespace bimkern
