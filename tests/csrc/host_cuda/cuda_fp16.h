// float16 of the stand-in for CUDA: the conversions alone, by the machine's own, which share no code with core/dtype.h.
#pragma once

#include "cuda_runtime.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

struct __half {
  uint16_t bits;
};

#if defined(__x86_64__)
__attribute__((target("f16c"))) inline float __half2float(__half x) { return _cvtsh_ss(x.bits); }
__attribute__((target("f16c"))) inline __half __float2half_rn(float x) {
  return __half{static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
}
#else
inline float __half2float(__half x) {
  __fp16 half;
  std::memcpy(&half, &x, sizeof(half));
  return half;
}
inline __half __float2half_rn(float x) {
  const auto half = static_cast<__fp16>(x);
  __half result;
  std::memcpy(&result, &half, sizeof(result));
  return result;
}
#endif
