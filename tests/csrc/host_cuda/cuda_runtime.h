// Stands in for the CUDA toolkit's header where a .cu file is compiled as C++, to run without a GPU: a CUDA thread is a
// fiber, blocks run one after another, and what CUDA leaves undefined fails the launch.
//
// Included ahead of a file by -include, as nvcc does with its own: it sets __CUDA_ARCH__, so that the device's branches
// are compiled. The standard headers come first and know nothing of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "calls.h"

#define __CUDACC__ 1
#define __CUDA_ARCH__ 900

// ---- the language; __shared__ and the chevrons are rewritten by rewrite.cmake ---------------------------------------
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned to_x = 1, unsigned to_y = 1, unsigned to_z = 1) : x(to_x), y(to_y), z(to_z) {}
};

extern uint3 threadIdx, blockIdx;  // of the fiber that runs
extern dim3 blockDim, gridDim;

// ---- the runtime library --------------------------------------------------------------------------------------------
using cudaStream_t = struct HostCudaStream*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t status);  // after a failed launch: what the kernel did

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

// ---- launches -------------------------------------------------------------------------------------------------------
namespace host_cuda {

// Runs body(context) in every thread of the grid.
void run_grid(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*),
              const void* context);

void allow_shared(const void* kernel, size_t bytes);

// kernel<<<grid, block, bytes, stream>>>(args) is Launch(grid, block, bytes, stream).run(kernel, args).
class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t shared_bytes = 0, cudaStream_t = nullptr)
      : grid_(grid), block_(block), shared_bytes_(shared_bytes) {}

  template <typename... Params, typename... Args>
  void run(void (*kernel)(Params...), const Args&... args) const {
    const std::pair<decltype(kernel), std::tuple<std::decay_t<Params>...>> call{kernel, {args...}};
    const auto body = [](const void* context) {
      const auto& mine = *static_cast<const decltype(call)*>(context);
      std::apply(mine.first, mine.second);
    };
    run_grid(reinterpret_cast<const void*>(kernel), grid_, block_, shared_bytes_, body, &call);
  }

 private:
  dim3 grid_, block_;
  size_t shared_bytes_;
};

}  // namespace host_cuda

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute, int value) {
  host_cuda::allow_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(value));
  return cudaSuccess;
}

#include "intrinsics.h"
