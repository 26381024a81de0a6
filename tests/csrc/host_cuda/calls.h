// What a kernel asks of the block and the warp that it runs in. A site is where the kernel asks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace host_cuda {

struct Site {
  const char* file = nullptr;
  int line = 0;
};

// Waits until all threads of the block are here.
void sync_block(Site site);

enum class WarpOp : uint8_t { kSync, kBallot, kShuffle, kShuffleUp, kShuffleDown, kShuffleXor };

// What a lane brings to a call that the lanes of mask make together.
struct WarpCall {
  WarpOp op;
  unsigned mask;
  uint64_t value = 0;
  unsigned operand = 0;  // of a shuffle: a lane, or a distance
  unsigned width = 32;
};

// Returns what the call gives this lane: the value of another one, or the ballot.
uint64_t call_warp(const WarpCall& call, Site site);

// The block's shared memory: the array whose size the launch says, and a variable of the kernel, known by its tag. Both
// are NaN until they are written, lie between red zones, and last as long as the block.
void* shared_array();
void* shared_variable(const void* tag, size_t bytes);

}  // namespace host_cuda
