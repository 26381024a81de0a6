// Memory traffic of CUDA kernels on the host: 32-byte sectors of global memory, bank conflicts of shared memory.
//
// A model of addresses: it knows no caches, no latency, and takes the accesses of GCC for those of nvcc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace host_cuda {

enum class Access : uint8_t { kRead, kWrite, kAtomic };

// What the warps of a launch did by one instruction.
struct Instruction {
  uintptr_t address;  // the first behind the instruction
  bool shared;
  Access access;
  unsigned width;           // bytes of a lane
  uint64_t warps = 0;       // accesses of a whole warp
  uint64_t bytes = 0;       // of all lanes
  uint64_t cost = 0;        // sectors of each warp; of shared memory, passes over the banks
  uint64_t least_cost = 0;  // of the same bytes, side by side
};

struct LaunchTraffic {
  const void* kernel;
  std::vector<Instruction> instructions;
  uint64_t block_sectors = 0;   // distinct in each block, added up; reads and writes count apart
  uint64_t launch_sectors = 0;  // distinct in the launch
  uint64_t uninitialized = 0;   // reads of shared memory that the block has not written
};

// Returns what each launch of run did to device_memory and to shared memory. Nothing else is traffic on a GPU:
// arguments come from the constant bank, locals are registers.
std::vector<LaunchTraffic> count_traffic(const std::function<void()>& run);

// Memory that counts, aligned as cudaMalloc does. It lasts until free_device_memory.
void* device_memory(size_t bytes);
void free_device_memory();

}  // namespace host_cuda
