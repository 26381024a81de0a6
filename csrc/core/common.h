// What every file of the core may use: integer types, and the mark for functions that run on both devices.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define BIMKERN_HD __host__ __device__ __forceinline__
#else
#define BIMKERN_HD inline
#endif

namespace bimkern {

template <typename Int>
BIMKERN_HD constexpr Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

}  // namespace bimkern
