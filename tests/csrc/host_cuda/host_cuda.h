// What tests and tools may ask of the stand-in for CUDA, beyond launching kernels.
#pragma once

#include "cuda_runtime.h"

namespace host_cuda {

// In which order blocks, and the threads of a block, take their turns. No result may depend on it.
enum class Order { kAscending, kDescending, kRandom };

void set_order(Order order, uint64_t seed = 0);

// Sees what launches do. A barrier is seen when all who wait for it are there.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void launch_begins(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) = 0;
  virtual void block_begins(uint64_t block, unsigned threads) = 0;
  virtual void thread_runs(int thread) = 0;  // from now on; -1: the host
  virtual void block_barrier() = 0;
  virtual void warp_barrier(unsigned first_thread, unsigned mask) = 0;
  virtual void block_ends() = 0;
  virtual void launch_ends() = 0;
};

void set_observer(Observer* observer);  // null: none

// Whether an address lies in the shared memory of the block, or on the stack of the thread, that runs.
bool is_shared(const void* address);
bool is_local(const void* address);

}  // namespace host_cuda
