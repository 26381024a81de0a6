// torch's CUDA allocator, replaced for the whole process: torch calls three C functions, which ask the core's devices.
//
//   void* bimkern_arena_alloc(ssize_t size, int device, cudaStream_t stream)
//   void bimkern_arena_free(void* address, ssize_t size, int device, cudaStream_t stream)
//   void bimkern_arena_record_stream(void* address, cudaStream_t stream)
#pragma once

#include "arena/device.h"

namespace bimkern {

// The memory of a GPU. Throws Error where it cannot be had.
Device& device_memory(int index);

// An arena on a GPU: its scopes are those of the stream that is torch's current one when they open. A misuse that a
// free finds is thrown by the next call of open(), close() or the constructor: torch frees in destructors.
class DeviceArena {
 public:
  DeviceArena(int device, bool debug);
  ~DeviceArena();
  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  void open(const std::string& scope);
  void close(const std::string& scope, bool aborted);
  Arena& arena() { return arena_.arena(); }
  OtherAllocations other_allocations() const { return memory_.other_allocations(arena_); }

 private:
  int index_;
  bool debug_;
  Device& memory_;
  Device::StreamArena& arena_;
  Stream stream_ = 0;  // of the open scope
};

}  // namespace bimkern
