// torch's CPU allocator, replaced while arenas exist: on a thread with an open scope tensors come from its arena, on
// every other thread from torch's own allocator, and are counted.
#pragma once

#include <c10/core/Allocator.h>

#include <memory>

#include "arena/arena.h"

namespace bimkern {

// torch's own allocator as an upstream: the fallback then has its alignment, its statistics and its error texts.
class TorchMemory : public HostMemory {
 public:
  explicit TorchMemory(c10::Allocator& allocator) : allocator_(allocator) {}
  void* allocate(int64_t bytes) override { return allocator_.raw_allocate(static_cast<size_t>(bytes)); }
  void deallocate(void* address, int64_t) override { allocator_.raw_deallocate(address); }

 private:
  c10::Allocator& allocator_;
};

// An arena over torch's allocator, and its part in the hook. Its memory lives until the last of its tensors is freed.
class HostArena {
 public:
  explicit HostArena(bool debug);
  ~HostArena();
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;

  void open(const std::string& scope);
  void close(const std::string& scope, bool aborted);
  Arena& arena();
  OtherAllocations other_allocations() const { return others_; }

 private:
  struct Shared;
  friend class HostHook;
  std::shared_ptr<Shared> shared_;
  OtherAllocations others_, before_;
};

}  // namespace bimkern
