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

}  // namespace bimkern
