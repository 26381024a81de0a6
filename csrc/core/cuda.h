// What the .cu files share: the launch check, and 16-byte access to rows.
#pragma once

#include <cuda_runtime.h>

#include "core/common.h"
#include "core/error.h"

namespace bimkern {

constexpr int kWarp = 32;
constexpr int64_t kPackBytes = 16;  // the widest load and store of one thread

inline void check_launch(const char* op) {
  const cudaError_t status = cudaGetLastError();
  BIMKERN_CHECK(status == cudaSuccess, op, ": CUDA launch failed: ", cudaGetErrorString(status));
}

// Elements that one thread moves at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T value[kCount];
};

// Whether every row that starts at pointer + i * stride can be read in packs.
inline bool is_packable(const void* pointer, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0 && stride_bytes % kPackBytes == 0;
}

// Place of id among count ascending ids, -1 if it is not there, found by kGroup neighbouring lanes of a warp together:
// log_kGroup(count) dependent loads where a search by one thread needs log_2(count). All lanes get the answer.
template <int kGroup>
__device__ __forceinline__ int64_t group_find(const int64_t* ids, int64_t stride, int64_t count, int64_t id) {
  static_assert(kWarp % kGroup == 0, "groups must not straddle warps");
  const unsigned lane = threadIdx.x % kGroup;
  const unsigned shift = (threadIdx.x + threadIdx.y * blockDim.x) % kWarp / kGroup * kGroup;
  const unsigned group = (0xffffffffu >> (kWarp - kGroup)) << shift;
  int64_t first = 0;
  while (count > 0) {
    const int64_t step = ceil_div<int64_t>(count, kGroup);
    const int64_t offset = lane * step;
    const int64_t probe = offset < count ? ids[(first + offset) * stride] : id + 1;
    const unsigned equal = __ballot_sync(group, probe == id) >> shift;
    if (equal != 0) {
      return first + (__ffs(static_cast<int>(equal)) - 1) * step;
    }
    const int below = __popc(__ballot_sync(group, probe < id));
    if (step == 1 || below == 0) {
      return -1;
    }
    // Between the last probe below id, exclusive, and the next one.
    const int64_t start = (below - 1) * step + 1;
    first += start;
    count = min(step - 1, count - start);
  }
  return -1;
}

}  // namespace bimkern
