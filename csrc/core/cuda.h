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

constexpr int kInFlight = 4;  // packs that a thread loads before it stores

// Copies a row by a warp. All loads of a turn come before its stores: the compiler may not move one across another, as
// out might be where the next is read.
template <typename P>
__device__ __forceinline__ void copy_row(const P* row, int packs, P* out) {
  for (int first = threadIdx.x; first < packs; first += kInFlight * kWarp) {
    P loaded[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i * kWarp < packs) {
        loaded[i] = row[first + i * kWarp];
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (first + i * kWarp < packs) {
        out[first + i * kWarp] = loaded[i];
      }
    }
  }
}

template <typename P>
__device__ __forceinline__ void fill_row(const P& value, int packs, P* out) {
  for (int i = threadIdx.x; i < packs; i += kWarp) {
    out[i] = value;
  }
}

// Whether every row that starts at pointer + i * stride can be read in packs.
inline bool is_packable(const void* pointer, int64_t stride_bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % kPackBytes == 0 && stride_bytes % kPackBytes == 0;
}

}  // namespace bimkern
