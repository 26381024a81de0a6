// bfloat16 of the stand-in for CUDA: the conversion alone, in double, so that it shares no code with core/dtype.h.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits;
};

// Rounds to nearest, ties to even.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (std::isnan(x)) {
    return {0x7fff};  // as the device does
  }
  if (std::isinf(x) || x == 0) {
    return {static_cast<uint16_t>(bits >> 16)};
  }
  int exponent;
  std::frexp(x, &exponent);
  const int last = std::max(exponent, std::numeric_limits<float>::min_exponent) - 8;  // the position of the last bit
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(double{x}, -last)), last);
  const float result = std::abs(rounded) > std::numeric_limits<float>::max()
                           ? std::copysign(std::numeric_limits<float>::infinity(), x)
                           : static_cast<float>(rounded);
  std::memcpy(&bits, &result, sizeof(bits));
  return {static_cast<uint16_t>(bits >> 16)};
}
