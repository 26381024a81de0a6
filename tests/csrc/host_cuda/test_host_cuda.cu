// The stand-in for CUDA does what CUDA defines, and names what CUDA leaves undefined: kernels with one fault each.
#include <string>
#include <vector>

#include "expect.h"
#include "host_cuda.h"

using host_cuda::Order;

namespace {

__global__ void ends_before_a_barrier(int* out) {
  if (threadIdx.x == 3) {
    return;
  }
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void waits_at_two_barriers(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void is_not_in_its_mask(int* out) { out[threadIdx.x] = static_cast<int>(__ballot_sync(0xffu, 1)); }

__global__ void reads_an_absent_lane(int* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(0xffffu, static_cast<int>(threadIdx.x), 20);
  }
}

__global__ void shuffles_without_a_lane(int* out) {
  if (threadIdx.x != 5) {
    out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 2);
  } else {
    __syncthreads();
  }
}

__global__ void meets_in_different_calls(int* out) {
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = __any_sync(0xffffffffu, 1);
  } else {
    out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
  }
}

__global__ void shuffles_by_thirds(int* out) { out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0, 3); }

__global__ void declares_too_much(int* out) {
  __shared__ int most[48 * 256];
  __shared__ int more[1];
  out[0] = most[0] + more[0];
}

// What is defined, in one kernel: adds the number of threads that see nothing wrong.
__global__ void asks_the_warp(int* out) {
  const int lane = threadIdx.x % 32;
  int sum = lane;
  for (int step = 16; step > 0; step /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, step);
  }
  const int total = __shfl_sync(0xffffffffu, sum, 0);
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
  const unsigned votes = __ballot_sync(half, lane % 3 == 0);
  const unsigned third = 0x49249249u;  // every third lane of a warp
  const int up = __shfl_up_sync(0xffffffffu, lane, 3, 8);
  const int eights = __shfl_sync(0xffffffffu, lane, 2, 8);
  const float neighbor = __shfl_xor_sync(0xffffffffu, 0.5f * lane, 1);
  const bool any = __any_sync(0xffffffffu, lane == 31), all = __all_sync(0xffffffffu, lane < 31);
  __syncwarp();
  const bool good = total == 496 && votes == (third & half) && up == (lane % 8 >= 3 ? lane - 3 : lane) &&
                    eights == lane / 8 * 8 + 2 && neighbor == 0.5f * (lane ^ 1) && any && !all;
  atomicAdd(out, good ? 1 : 0);
}

struct Pair {
  int first;
  double second;
};

template <int kCount>
__global__ void shares_memory(int* out) {
  extern __shared__ float array[];
  __shared__ int variable[kCount][2];
  __shared__ Pair pair;
  const bool poisoned = array[threadIdx.x] != array[threadIdx.x] && variable[threadIdx.x][1] == -1;
  __syncthreads();
  array[threadIdx.x] = static_cast<float>(threadIdx.x);
  variable[threadIdx.x][1] = static_cast<int>(threadIdx.x);
  if (threadIdx.x == 0) {
    pair = Pair{7, 0.5};
  }
  __syncthreads();
  const unsigned other = kCount - 1 - threadIdx.x;
  const bool good = poisoned && array[other] == static_cast<float>(other) &&
                    variable[other][1] == static_cast<int>(other) && pair.first == 7 && pair.second == 0.5;
  atomicAdd(out, good ? 1 : 0);
}

__global__ void writes_its_index(int* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
}

// Runs a launch in every order; each must leave the text of cudaGetErrorString.
template <typename F>
void expect(const std::string& text, const F& launch) {
  for (const Order order : {Order::kAscending, Order::kDescending, Order::kRandom}) {
    host_cuda::set_order(order, 7);
    launch();
    const std::string got = cudaGetErrorString(cudaGetLastError());
    if (got.find(text) == std::string::npos) {
      std::fprintf(stderr, "expected '%s', got '%s'\n", text.c_str(), got.c_str());
      ++failures();
    }
  }
}

void test_what_is_undefined() {
  std::vector<int> memory(64);
  int* const out = memory.data();
  expect("deadlock in block (0,0,0), 1 of 64 threads have ended; thread (0,0,0) waits at ",
         [=] { ends_before_a_barrier<<<1, 64>>>(out); });
  expect("barriers diverge in block (0,0,0): thread (0,0,0) waits at ", [=] { waits_at_two_barriers<<<1, 64>>>(out); });
  expect("is not in its own mask 0x000000ff", [=] { is_not_in_its_mask<<<1, 32>>>(out); });
  expect("reads lane 20, which takes no part (mask 0x0000ffff", [=] { reads_an_absent_lane<<<1, 32>>>(out); });
  expect("for mask 0xffffffff", [=] { shuffles_without_a_lane<<<1, 32>>>(out); });
  expect("lanes of a warp meet in different calls", [=] { meets_in_different_calls<<<1, 32>>>(out); });
  expect("width must be a power of two up to 32, got 3", [=] { shuffles_by_thirds<<<1, 32>>>(out); });
  expect("more than 49152 bytes, or 64, of shared variables", [=] { declares_too_much<<<1, 32>>>(out); });
}

void test_what_the_runtime_refuses() {
  std::vector<int> memory(64);
  int* const out = memory.data();
  const std::string text = "invalid configuration argument";
  expect(text, [=] { asks_the_warp<<<1, 1025>>>(out); });
  expect(text, [=] { asks_the_warp<<<0, 32>>>(out); });
  expect(text, [=] { asks_the_warp<<<dim3(1, 0x10000), 32>>>(out); });
  expect(text, [=] { asks_the_warp<<<1, dim3(1, 1, 65)>>>(out); });
  expect(text, [=] { shares_memory<32><<<1, 32, 48 * 1024 + 1>>>(out); });
  cudaFuncSetAttribute(shares_memory<32>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024);
  expect("no error", [=] { shares_memory<32><<<1, 32, 48 * 1024 + 1>>>(out); });
}

void test_what_is_defined() {
  int good = 0;
  expect("no error", [&] { asks_the_warp<<<3, 96>>>(&good); });
  EXPECT(good == 3 * 3 * 96);  // in each of three orders
  good = 0;
  expect("no error", [&] { shares_memory<64><<<5, 64, 64 * sizeof(float)>>>(&good); });
  EXPECT(good == 3 * 5 * 64);
  std::vector<int> seen(2 * 3 * 2 * 4 * 3 * 5);
  expect("no error", [&] { writes_its_index<<<dim3(2, 3, 2), dim3(4, 3, 5)>>>(seen.data()); });
  EXPECT(seen == std::vector<int>(seen.size(), 3));
}

struct Counter : host_cuda::Observer {
  int launches = 0, blocks = 0, barriers = 0, warp_barriers = 0, threads = 0;
  void launch_begins(const void*, dim3, dim3, size_t) override { ++launches; }
  void block_begins(uint64_t, unsigned) override { ++blocks; }
  void thread_runs(int thread) override { threads += thread >= 0 ? 1 : 0; }
  void block_barrier() override { ++barriers; }
  // Called by the lane that comes last, which is another thread to ThreadSanitizer each time.
  __attribute__((no_sanitize("thread"))) void warp_barrier(unsigned, unsigned) override { ++warp_barriers; }
  void block_ends() override {}
  void launch_ends() override {}
};

void test_an_observer_sees_it() {
  int good = 0;
  Counter counter;
  host_cuda::set_order(Order::kAscending);
  host_cuda::set_observer(&counter);
  shares_memory<64><<<5, 64, 64 * sizeof(float)>>>(&good);
  asks_the_warp<<<1, 64>>>(&good);
  host_cuda::set_observer(nullptr);
  EXPECT(counter.launches == 2 && counter.blocks == 6 && counter.barriers == 5 * 2 && counter.warp_barriers == 2);
  EXPECT(counter.threads >= 5 * 64 * 3);  // to each barrier, and to the end
  EXPECT(!host_cuda::is_shared(&good) && !host_cuda::is_local(&good));
}

}  // namespace

int main() {
  test_what_is_undefined();
  test_what_the_runtime_refuses();
  test_what_is_defined();
  test_an_observer_sees_it();
  return failures() > 0;
}
