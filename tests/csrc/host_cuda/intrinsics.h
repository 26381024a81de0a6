// The functions that device code calls without declaring them: barriers, votes, shuffles, atomics, arithmetic.
#pragma once

#include "cuda_runtime.h"

// ---- barriers, votes, shuffles: the last two arguments say where the call stands ------------------------------------
#define HOST_CUDA_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace host_cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
T shuffle(WarpCall call, T value, Site site) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8, "a shuffle takes 32 or 64 bits");
  std::memcpy(&call.value, &value, sizeof(T));
  const uint64_t bits = call_warp(call, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace host_cuda

inline void __syncthreads(HOST_CUDA_SITE) { host_cuda::sync_block({file, line}); }
inline void __syncwarp(unsigned mask = host_cuda::kAllLanes, HOST_CUDA_SITE) {
  host_cuda::call_warp({host_cuda::WarpOp::kSync, mask}, {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HOST_CUDA_SITE) {
  return static_cast<unsigned>(host_cuda::call_warp({host_cuda::WarpOp::kBallot, mask, predicate != 0}, {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, HOST_CUDA_SITE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, HOST_CUDA_SITE) {
  return __ballot_sync(mask, !predicate, file, line) == 0;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, unsigned width = 32, HOST_CUDA_SITE) {
  const auto operand = static_cast<unsigned>(lane);
  return host_cuda::shuffle({host_cuda::WarpOp::kShuffle, mask, 0, operand, width}, value, {file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, unsigned width = 32, HOST_CUDA_SITE) {
  return host_cuda::shuffle({host_cuda::WarpOp::kShuffleUp, mask, 0, distance, width}, value, {file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, unsigned width = 32, HOST_CUDA_SITE) {
  return host_cuda::shuffle({host_cuda::WarpOp::kShuffleDown, mask, 0, distance, width}, value, {file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, unsigned width = 32, HOST_CUDA_SITE) {
  const auto operand = static_cast<unsigned>(lanes);
  return host_cuda::shuffle({host_cuda::WarpOp::kShuffleXor, mask, 0, operand, width}, value, {file, line});
}

// ---- atomics --------------------------------------------------------------------------------------------------------
namespace host_cuda {

template <typename T>
using NotDeduced = std::common_type_t<T>;

// *to = f(*to); returns what was there. Inlined, as all atomics: traffic/counter.cpp tells accesses apart by who asks.
template <typename T, typename F>
__forceinline__ T update(T* to, const F& f) {
  T old;
  __atomic_load(to, &old, __ATOMIC_RELAXED);
  T next = f(old);
  while (!__atomic_compare_exchange(to, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    next = f(old);
  }
  return old;
}

}  // namespace host_cuda

template <typename T>
__forceinline__ T atomicAdd(T* to, host_cuda::NotDeduced<T> value) {
  return host_cuda::update(to, [=](T old) { return old + value; });
}
template <typename T>
__forceinline__ T atomicMax(T* to, host_cuda::NotDeduced<T> value) {
  return host_cuda::update(to, [=](T old) { return std::max(old, value); });
}
template <typename T>
__forceinline__ T atomicMin(T* to, host_cuda::NotDeduced<T> value) {
  return host_cuda::update(to, [=](T old) { return std::min(old, value); });
}
template <typename T>
__forceinline__ T atomicExch(T* to, host_cuda::NotDeduced<T> value) {
  return host_cuda::update(to, [=](T) { return value; });
}
template <typename T>
__forceinline__ T atomicCAS(T* to, host_cuda::NotDeduced<T> expected, host_cuda::NotDeduced<T> value) {
  return host_cuda::update(to, [=](T old) { return old == expected ? value : old; });
}

// ---- bits, arithmetic -----------------------------------------------------------------------------------------------
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

template <typename T>
T __ldg(const T* from) {
  return *from;
}
template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

// -ffp-contract=off keeps a product and a sum apart; nvcc contracts them, but for these.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
