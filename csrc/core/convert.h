// Bytes and 16-bit rows to float32, and the latter back, kCount elements at a time, a multiple of 16, on every
// instruction set of simd.h.
//
// Same bits as to_float, to_float16 and to_bfloat16 of dtype.h, but for what a NaN carries in its mantissa. The
// compiler vectorizes widening bfloat16 well by itself; for the other three it needs to be told.
#pragma once

#include "core/dtype.h"
#include "core/simd.h"

#if BIMKERN_X86
#include <immintrin.h>
#endif

namespace bimkern {

constexpr int kConverted = 64;

template <int kCount = kConverted, Simd kSimd, typename T>
BIMKERN_INLINE inline void widen(SimdTag<kSimd>, const T* from, float* to) {
  for (int i = 0; i < kCount; ++i) {
    to[i] = Arithmetic<T>::load(from[i]);
  }
}

template <int kCount = kConverted, Simd kSimd, typename T>
BIMKERN_INLINE inline void narrow(SimdTag<kSimd>, const float* from, T* to) {
  for (int i = 0; i < kCount; ++i) {
    to[i] = Arithmetic<T>::store(from[i]);
  }
}

#if BIMKERN_X86
// GCC 12 warns of an uninitialized source in the unmasked forms of some AVX-512 intrinsics.
constexpr __mmask16 kAll = 0xffff;

template <int kCount = kConverted>
BIMKERN_AVX2 inline void widen(SimdTag<Simd::kAvx2>, const float16* from, float* to) {
  for (int i = 0; i < kCount; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
}

template <int kCount = kConverted>
BIMKERN_AVX512 inline void widen(SimdTag<Simd::kAvx512>, const float16* from, float* to) {
  for (int i = 0; i < kCount; i += 16) {
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(kAll, halves));
  }
}

template <int kCount = kConverted>
BIMKERN_AVX2 inline void widen(SimdTag<Simd::kAvx2>, const uint8_t* from, float* to) {
  for (int i = 0; i < kCount; i += 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
  }
}

template <int kCount = kConverted>
BIMKERN_AVX512 inline void widen(SimdTag<Simd::kAvx512>, const uint8_t* from, float* to) {
  for (int i = 0; i < kCount; i += 16) {
    const __m512i words = _mm512_maskz_cvtepu8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    _mm512_storeu_ps(to + i, _mm512_maskz_cvtepi32_ps(kAll, words));
  }
}

template <int kCount = kConverted>
BIMKERN_AVX2 inline void narrow(SimdTag<Simd::kAvx2>, const float* from, float16* to) {
  for (int i = 0; i < kCount; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
}

template <int kCount = kConverted>
BIMKERN_AVX512 inline void narrow(SimdTag<Simd::kAvx512>, const float* from, float16* to) {
  for (int i = 0; i < kCount; i += 16) {
    const __m256i halves = _mm512_maskz_cvtps_ph(kAll, _mm512_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), halves);
  }
}

// The upper half of every word, rounded as to_bfloat16 does.
BIMKERN_AVX2 inline __m256i bfloat16_words(const float* from) {
  const __m256 x = _mm256_loadu_ps(from);
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
}

template <int kCount = kConverted>
BIMKERN_AVX2 inline void narrow(SimdTag<Simd::kAvx2>, const float* from, bfloat16* to) {
  for (int i = 0; i < kCount; i += 16) {
    const __m256i packed = _mm256_packus_epi32(bfloat16_words(from + i), bfloat16_words(from + i + 8));
    const __m256i ordered = _mm256_permute4x64_epi64(packed, 0xd8);  // packing goes by 128-bit lanes
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), ordered);
  }
}

template <int kCount = kConverted>
BIMKERN_AVX512 inline void narrow(SimdTag<Simd::kAvx512>, const float* from, bfloat16* to) {
  for (int i = 0; i < kCount; i += 16) {
    const __m512 x = _mm512_loadu_ps(from + i);
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i words = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    const __m256i packed = _mm512_maskz_cvtepi32_epi16(kAll, _mm512_maskz_srli_epi32(kAll, words, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), packed);
  }
}
#endif

}  // namespace bimkern
