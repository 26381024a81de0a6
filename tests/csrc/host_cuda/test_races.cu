// ThreadSanitizer finds the races of CUDA threads, and nothing where barriers order them.
#include <string>
#include <vector>

#include "expect.h"
#include "host_cuda.h"

namespace {

int reports = 0;

constexpr int kThreads = 64;  // they write the first half of out, and read it into the second

__global__ void neighbors(int* out) {
  out[threadIdx.x] = 1;
  out[kThreads + threadIdx.x] = out[(threadIdx.x + 1) % kThreads];
}

__global__ void neighbors_behind_a_barrier(int* out) {
  out[threadIdx.x] = 1;
  __syncthreads();
  out[kThreads + threadIdx.x] = out[(threadIdx.x + 1) % kThreads];
}

__global__ void lanes_behind_a_barrier(int* out) {
  out[threadIdx.x] = 1;
  __syncwarp();
  out[kThreads + threadIdx.x] = out[threadIdx.x ^ 1];
}

__global__ void lanes_behind_a_shuffle(int* out) {
  out[threadIdx.x] = 1;
  __shfl_xor_sync(0xffffffffu, 1, 1);
  out[kThreads + threadIdx.x] = out[threadIdx.x ^ 1];
}

__global__ void warps_behind_barriers_of_lanes(int* out) {
  out[threadIdx.x] = 1;
  __syncwarp();
  out[kThreads + threadIdx.x] = out[threadIdx.x ^ 32];
}

__global__ void rounds_with_one_barrier(int* out) {
  for (int i = 0; i < 3; ++i) {
    __syncthreads();
    out[threadIdx.x] = i;
    out[kThreads + threadIdx.x] = out[threadIdx.x ^ 1];
  }
}

__global__ void reads_before_the_next_round_writes(int* out) {
  for (int i = 0; i < 3; ++i) {
    out[threadIdx.x] = i;
    __syncthreads();
    out[kThreads + threadIdx.x] = out[threadIdx.x ^ 1];
  }
}

__global__ void rounds_with_two_barriers(int* out) {
  for (int i = 0; i < 3; ++i) {
    out[threadIdx.x] = i;
    __syncthreads();
    out[kThreads + threadIdx.x] = out[threadIdx.x ^ 1];
    __syncthreads();
  }
}

__global__ void adds(int* out) { out[0] += 1; }

__global__ void adds_atomically(int* out) { atomicAdd(out, 1); }

__global__ void shares_one_word(int* out) {
  __shared__ int word;
  word = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = word;
}

__global__ void shares_its_words(int* out) {
  __shared__ int words[kThreads];
  words[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = words[threadIdx.x ^ 1];
}

void expect(bool races, const char* name, void (*kernel)(int*)) {
  std::vector<int> out(2 * kThreads);
  for (const auto order : {host_cuda::Order::kAscending, host_cuda::Order::kDescending, host_cuda::Order::kRandom}) {
    host_cuda::set_order(order, 3);
    reports = 0;
    kernel<<<1, kThreads>>>(out.data());
    if (cudaGetLastError() != cudaSuccess || (reports > 0) != races) {
      std::fprintf(stderr, "%s: %d reports\n", name, reports);
      ++failures();
    }
  }
}

}  // namespace

#define FOR_THREAD_SANITIZER extern "C" __attribute__((visibility("default"), no_sanitize("thread")))

// Called for every race that is reported.
FOR_THREAD_SANITIZER void __tsan_on_report(void*) { ++reports; }

// Races that look alike are reported each time, and are no reason to exit with an error.
FOR_THREAD_SANITIZER const char* __tsan_default_options() {
  return "suppress_equal_stacks=0:suppress_equal_addresses=0:exitcode=0";
}

#define EXPECT_RACE(kernel) expect(true, #kernel, kernel)
#define EXPECT_ORDER(kernel) expect(false, #kernel, kernel)

int main() {
  EXPECT_RACE(neighbors);
  EXPECT_ORDER(neighbors_behind_a_barrier);
  EXPECT_ORDER(lanes_behind_a_barrier);
  EXPECT_RACE(lanes_behind_a_shuffle);
  EXPECT_RACE(warps_behind_barriers_of_lanes);
  EXPECT_RACE(rounds_with_one_barrier);
  EXPECT_RACE(reads_before_the_next_round_writes);
  EXPECT_ORDER(rounds_with_two_barriers);
  EXPECT_RACE(adds);
  EXPECT_ORDER(adds_atomically);
  EXPECT_RACE(shares_one_word);
  EXPECT_ORDER(shares_its_words);
  return failures() > 0;
}
