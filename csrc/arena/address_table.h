// Live allocations by address: open addressing with linear probing, since every allocation and free passes here. It
// allocates only when it grows.
#pragma once

#include <vector>

#include "core/common.h"

namespace bimkern {

struct LiveAllocation {
  void* address = nullptr;
  int64_t bytes = 0;
  int32_t planned = -1;   // slot of the plan `plan`; -1: the upstream's
  int32_t recorded = -1;  // index in the recording `session`; -1: not written down
  uint32_t plan = 0;
  uint32_t session = 0;
  uint32_t visit = 0;  // of a scope, counted over the arena's life
  int32_t scope = -1;  // of the arena's list of names
  int32_t order = -1;  // of the allocation in its scope
};

class AddressTable {
 public:
  AddressTable() : slots_(kSmallest) {}

  size_t size() const { return size_; }

  // Makes room, so that the next insert cannot fail.
  void reserve_one() {
    if (2 * (size_ + 1) > slots_.size()) {
      grow();
    }
  }

  void insert(const LiveAllocation& allocation) {
    slots_[empty_for(allocation.address)] = allocation;
    ++size_;
  }

  LiveAllocation* find(const void* address) {
    return const_cast<LiveAllocation*>(static_cast<const AddressTable*>(this)->find(address));
  }
  const LiveAllocation* find(const void* address) const {
    for (size_t i = home(address); slots_[i].address != nullptr; i = next(i)) {
      if (slots_[i].address == address) {
        return &slots_[i];
      }
    }
    return nullptr;
  }

  // Shifts back what was pushed on by the erased slot, so that no tombstones pile up over a long run.
  void erase(LiveAllocation* allocation) {
    size_t hole = static_cast<size_t>(allocation - slots_.data());
    for (size_t i = next(hole); slots_[i].address != nullptr; i = next(i)) {
      const size_t from = home(slots_[i].address);
      const bool stays = hole <= i ? hole < from && from <= i : hole < from || from <= i;
      if (!stays) {
        slots_[hole] = slots_[i];
        hole = i;
      }
    }
    slots_[hole] = LiveAllocation{};
    --size_;
  }

  template <typename F>
  void for_each(const F& f) const {
    for (const LiveAllocation& allocation : slots_) {
      if (allocation.address != nullptr) {
        f(allocation);
      }
    }
  }

 private:
  static constexpr size_t kSmallest = 256;  // a power of two

  size_t home(const void* address) const {
    const uint64_t bits = reinterpret_cast<uintptr_t>(address);
    return static_cast<size_t>((bits * 0x9E3779B97F4A7C15u) >> 32) & (slots_.size() - 1);  // Fibonacci hashing
  }
  size_t next(size_t i) const { return (i + 1) & (slots_.size() - 1); }

  size_t empty_for(const void* address) const {
    size_t i = home(address);
    while (slots_[i].address != nullptr) {
      i = next(i);
    }
    return i;
  }

  void grow() {
    std::vector<LiveAllocation> old(2 * slots_.size());
    old.swap(slots_);
    for (const LiveAllocation& allocation : old) {
      if (allocation.address != nullptr) {
        slots_[empty_for(allocation.address)] = allocation;
      }
    }
  }

  std::vector<LiveAllocation> slots_;
  size_t size_ = 0;
};

}  // namespace bimkern
