// Element types: 16-bit storage types, the type their arithmetic is done in, and the dispatch from a run-time tag.
//
// On the host the conversions are branch-free so that loops over them vectorise without F16C.
#pragma once

#include <cstring>

#include "core/common.h"
#include "core/error.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace bimkern {

// kUInt8 is for pixels alone: dispatch_pixels.
enum class DType : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64, kUInt8 };

inline int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : dtype == DType::kUInt8 ? 1 : 2;
}

struct float16 {
  uint16_t bits;
};

struct bfloat16 {
  uint16_t bits;
};

template <typename To, typename From>
BIMKERN_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

BIMKERN_HD float to_float(bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

BIMKERN_HD float to_float(float16 x) {
#ifdef __CUDA_ARCH__
  return __half2float(bit_cast<__half>(x.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  // 2^112 moves the exponent from bias 15 to bias 127, and makes normal numbers of subnormal ones.
  const uint32_t scaled = bit_cast<uint32_t>(bit_cast<float>(rest) * 0x1p112f);
  const uint32_t special = rest >= (0x7c00u << 13) ? 0x7f800000u : 0u;  // infinity and NaN keep their mantissa
  return bit_cast<float>(sign | scaled | special);
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN.
BIMKERN_HD bfloat16 to_bfloat16(float x) {
#ifdef __CUDA_ARCH__
  return bit_cast<bfloat16>(__float2bfloat16_rn(x));
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return bfloat16{static_cast<uint16_t>(is_nan ? nan : rounded)};
#endif
}

// Rounds to nearest, ties to even; beyond the range to infinity; NaN stays NaN.
BIMKERN_HD float16 to_float16(float x) {
#ifdef __CUDA_ARCH__
  return bit_cast<float16>(__float2half_rn(x));
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: move the exponent to bias 15 and round the 13 bits that fall off.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 lets the adder itself round at the last bit that float16 has there.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= (143u << 23) ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return float16{static_cast<uint16_t>(sign | result)};
#endif
}

// The type that sums of T are computed in, and the way there and back.
template <typename T>
struct Arithmetic {
  using type = T;
  static BIMKERN_HD T load(T x) { return x; }
  static BIMKERN_HD T store(T x) { return x; }
};

template <>
struct Arithmetic<float16> {
  using type = float;
  static BIMKERN_HD float load(float16 x) { return to_float(x); }
  static BIMKERN_HD float16 store(float x) { return to_float16(x); }
};

template <>
struct Arithmetic<bfloat16> {
  using type = float;
  static BIMKERN_HD float load(bfloat16 x) { return to_float(x); }
  static BIMKERN_HD bfloat16 store(float x) { return to_bfloat16(x); }
};

// Calls f with a value of the type that dtype names: dispatch(dtype, [&](auto type) { using T = decltype(type); ... }).
template <typename F>
void dispatch(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(float16{});
    case DType::kBFloat16:
      return f(bfloat16{});
    case DType::kFloat64:
      return f(double{});
    case DType::kUInt8:  // pixels only
      break;
  }
  BIMKERN_CHECK(false, "dtype must be one of float32, float16, bfloat16, float64, got tag ", static_cast<int>(dtype));
}

// The same with the type that sums of dtype are computed in.
template <typename F>
void dispatch_arithmetic(DType dtype, const F& f) {
  dispatch(dtype, [&](auto type) { f(typename Arithmetic<decltype(type)>::type{}); });
}

// The same for images, which may also be bytes.
template <typename F>
void dispatch_pixels(DType dtype, const F& f) {
  return dtype == DType::kUInt8 ? f(uint8_t{}) : dispatch(dtype, f);
}

// The same for parameters, which are float32 or float64.
template <typename F>
void dispatch_wide(DType dtype, const F& f) {
  BIMKERN_CHECK(dtype == DType::kFloat32 || dtype == DType::kFloat64, "dtype must be float32 or float64, got tag ",
                static_cast<int>(dtype));
  return dtype == DType::kFloat32 ? f(float{}) : f(double{});
}

}  // namespace bimkern
