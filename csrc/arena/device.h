// The memory of one device, behind torch's allocator functions: an arena serves allocations inside a scope, on the
// stream that owns it; the driver's stream-ordered pool serves all others.
//
// An allocation belongs to the stream that it was allocated on. Another stream that uses it is recorded. When the
// allocation is freed, its owner waits for an event recorded on each of these streams; work submitted to the owner
// afterwards may write to the memory at once, whenever host or device get there. So an arena is ordinary
// stream-ordered memory, and returns the same addresses at every step.
//
// Threads do not matter: a backward pass runs on a thread of its own and on the stream of its forward pass. All calls
// are safe from any thread at any time.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "arena/arena.h"
#include "arena/stream_memory.h"

namespace bimkern {

class Device {
 public:
  explicit Device(Driver& driver) : pool_(driver) {}
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  // nullptr for 0 bytes. Throws kNoMemory.
  void* allocate(int64_t bytes, Stream stream);
  // `on`: the stream that the caller works on, or the allocation's own. It is waited for like a recorded one; debug
  // mode reports it when it is neither (kUnsynchronizedFree, thrown when the scope closes). Nothing for nullptr. Throws
  // kDoubleFree, kForeignPointer, and what the driver throws: the allocation then stays live, and its memory is not
  // reused.
  void free(void* address, Stream on);
  // For a caller of free() that must not throw: keeps the first error for the next make_arena(), open() or close(),
  // which throws it; close() after closing the scope.
  void keep(const ArenaError& error);
  // The stream uses the allocation, so that a free must wait for it. Returns false if the address is not live here. It
  // must be a stream of this device: torch passes only the handle, and default streams of all devices share one.
  bool record(void* address, Stream stream);

  int64_t live_bytes() const;  // of the driver's pool: plans, fallbacks and all allocations outside scopes
  int64_t peak_bytes() const;  // so far

  // An arena of the device: the first stream that opens a scope owns it. It stays after close_arena() until the
  // last of its allocations is freed.
  class StreamArena;
  StreamArena& make_arena(bool debug);
  void close_arena(StreamArena& arena);
  void open(StreamArena& arena, const std::string& scope, Stream stream);
  void close(StreamArena& arena, const std::string& scope, Stream stream, bool aborted);
  OtherAllocations other_allocations(const StreamArena& arena) const;

 private:
  struct PoolAllocation {
    int64_t bytes;
    Stream stream;
  };

  StreamArena* arena_of(const void* address) const;
  bool wait_for_users(void* address, Stream owner, Stream on);
  void forget_if_done(const StreamArena& arena);
  void throw_kept();

  mutable std::mutex mutex_;
  CountedPool pool_;
  std::unordered_map<void*, PoolAllocation> allocations_;  // the live ones of the pool
  std::unordered_map<void*, std::vector<Stream>> users_;   // recorded streams of live allocations
  std::vector<std::unique_ptr<StreamArena>> arenas_;       // also closed ones, while allocations live in them
  std::vector<StreamArena*> open_;                         // with an open scope
  std::optional<ArenaError> kept_;
};

class Device::StreamArena {
 public:
  StreamArena(CountedPool& pool, bool debug) : memory_(pool), arena_(memory_, debug), debug_(debug) {}

  Arena& arena() { return arena_; }

 private:
  friend class Device;
  StreamMemory memory_;
  Arena arena_;
  bool debug_;
  bool owned_ = false;
  bool closed_ = false;  // no more scopes will open
  OtherAllocations others_;
};

}  // namespace bimkern
