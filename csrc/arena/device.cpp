// Contract: device.h.
#include "arena/device.h"

#include <utility>

namespace bimkern {

using Lock = std::lock_guard<std::mutex>;

void* Device::allocate(int64_t bytes, Stream stream) {
  if (bytes == 0) {
    return nullptr;
  }
  const Lock lock(mutex_);
  const auto own = std::find_if(open_.begin(), open_.end(),
                                [&](const StreamArena* open) { return open->memory_.stream() == stream; });
  void* address = own != open_.end() ? (*own)->arena_.allocate(bytes, stream) : pool_.allocate(bytes, stream);
  BIMKERN_ARENA_CHECK(address != nullptr, Fault::kNoMemory, "no memory for ", bytes, " bytes");
  if (own == open_.end()) {
    allocations_.emplace(address, PoolAllocation{bytes, stream});
  }
  for (auto open = open_.begin(); open != open_.end(); ++open) {
    if (open != own) {
      ++(*open)->others_.count;
      (*open)->others_.bytes += bytes;
    }
  }
  return address;
}

void Device::free(void* address, Stream on) {
  if (address == nullptr) {
    return;
  }
  const Lock lock(mutex_);
  const auto found = allocations_.find(address);
  if (found != allocations_.end()) {
    const PoolAllocation allocation = found->second;
    wait_for_users(address, allocation.stream, on);
    allocations_.erase(found);
    pool_.free(address, allocation.bytes, allocation.stream);
    return;
  }
  StreamArena* arena = arena_of(address);
  if (arena == nullptr) {
    const auto owns = [&](const auto& other) { return other->arena_.owns(address); };
    throw_not_live(address, std::any_of(arenas_.begin(), arenas_.end(), owns));
  }
  // Debug mode poisons the memory behind these waits.
  const bool recorded = wait_for_users(address, arena->memory_.stream(), on);
  arena->arena_.free(address, arena->debug_ && !recorded);
  forget_if_done(*arena);
}

void Device::keep(const ArenaError& error) {
  const Lock lock(mutex_);
  if (!kept_) {
    kept_ = error;
  }
}

bool Device::record(void* address, Stream stream) {
  const Lock lock(mutex_);
  const auto found = allocations_.find(address);
  const StreamArena* arena = found == allocations_.end() ? arena_of(address) : nullptr;
  if (found == allocations_.end() && arena == nullptr) {
    return false;
  }
  if (stream == (arena == nullptr ? found->second.stream : arena->memory_.stream())) {
    return true;
  }
  std::vector<Stream>& users = users_[address];
  if (std::find(users.begin(), users.end(), stream) == users.end()) {
    users.push_back(stream);
  }
  return true;
}

int64_t Device::live_bytes() const {
  const Lock lock(mutex_);
  return pool_.live_bytes();
}

int64_t Device::peak_bytes() const {
  const Lock lock(mutex_);
  return pool_.peak_bytes();
}

Device::StreamArena& Device::make_arena(bool debug) {
  const Lock lock(mutex_);
  throw_kept();
  arenas_.push_back(std::make_unique<StreamArena>(pool_, debug));
  return *arenas_.back();
}

void Device::close_arena(StreamArena& arena) {
  const Lock lock(mutex_);
  open_.erase(std::remove(open_.begin(), open_.end(), &arena), open_.end());
  arena.closed_ = true;
  forget_if_done(arena);
}

OtherAllocations Device::other_allocations(const StreamArena& arena) const {
  const Lock lock(mutex_);
  return arena.others_;
}

void Device::open(StreamArena& arena, const std::string& scope, Stream stream) {
  const Lock lock(mutex_);
  throw_kept();
  for (const StreamArena* other : open_) {
    BIMKERN_ARENA_CHECK(other == &arena || other->memory_.stream() != stream, Fault::kScope, "scope '", scope,
                        "' cannot open: this stream is in a scope of another arena");
  }
  if (!arena.owned_) {
    arena.memory_.belongs_to(stream);
  }
  arena.arena_.open(scope, stream);
  arena.owned_ = true;
  open_.push_back(&arena);
}

void Device::close(StreamArena& arena, const std::string& scope, Stream stream, bool aborted) {
  const Lock lock(mutex_);
  const auto leave = [&] { open_.erase(std::remove(open_.begin(), open_.end(), &arena), open_.end()); };
  try {
    arena.arena_.close(scope, stream, aborted);
  } catch (const ArenaError& error) {
    if (reported_after_closing(error.fault())) {
      leave();
    }
    throw;
  }
  leave();
  throw_kept();
}

Device::StreamArena* Device::arena_of(const void* address) const {
  const auto found =
      std::find_if(arenas_.begin(), arenas_.end(), [&](const auto& arena) { return arena->arena_.is_live(address); });
  return found == arenas_.end() ? nullptr : found->get();
}

// Makes the owner wait for all users of the allocation. -> whether `on` is one of them, or the owner.
bool Device::wait_for_users(void* address, Stream owner, Stream on) {
  const auto wait_for = [&](Stream user) { pool_.driver().wait(owner, pool_.driver().record(user)); };
  bool known = on == owner;
  const auto found = users_.find(address);
  if (found != users_.end()) {
    for (const Stream user : found->second) {
      known = known || user == on;
      wait_for(user);
    }
    users_.erase(found);
  }
  if (!known) {
    wait_for(on);
  }
  return known;
}

void Device::forget_if_done(const StreamArena& arena) {
  if (arena.closed_ && arena.arena_.statistics().live_allocations == 0) {
    arenas_.erase(std::find_if(arenas_.begin(), arenas_.end(), [&](const auto& a) { return a.get() == &arena; }));
  }
}

void Device::throw_kept() {
  if (const std::optional<ArenaError> error = std::exchange(kept_, std::nullopt)) {
    throw ArenaError(*error);
  }
}

}  // namespace bimkern
