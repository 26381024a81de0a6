// Philox4x32-10 of kPhiloxLanes counters at a time, on every instruction set of simd.h; same words as philox4x32_10.
//
// A 32-bit word sits in the lower half of a 64-bit lane, where the vector product reads it, and the upper half holds
// whatever the round before left there. The compiler, not knowing that, would multiply all 64 bits.
#pragma once

#include "core/philox.h"
#include "core/simd.h"

#if BIMKERN_X86
#include <immintrin.h>
#endif

namespace bimkern {

constexpr int kPhiloxLanes = 8;

// Writes 4 * kPhiloxLanes words: those of counter, then of the ones with 1, 2, ... added to its first word.
template <Simd kSimd>
BIMKERN_INLINE inline void philox_lanes(SimdTag<kSimd>, PhiloxCounter counter, PhiloxKey key, uint32_t* words) {
  for (int lane = 0; lane < kPhiloxLanes; ++lane) {
    const PhiloxCounter block = philox4x32_10(counter, key);
    for (int i = 0; i < 4; ++i) {
      words[4 * lane + i] = block.word[i];
    }
    ++counter.word[0];
  }
}

#if BIMKERN_X86
BIMKERN_AVX2 inline void philox_lanes(SimdTag<Simd::kAvx2>, PhiloxCounter counter, PhiloxKey key, uint32_t* words) {
  constexpr int kHalf = kPhiloxLanes / 2;
  for (int first = 0; first < kPhiloxLanes; first += kHalf) {
    const uint32_t start = counter.word[0] + first;
    // In the order that unpacking by 128-bit lanes turns into that of the counters.
    __m256i c0 = _mm256_add_epi64(_mm256_set1_epi64x(start), _mm256_set_epi64x(3, 1, 2, 0));
    __m256i c1 = _mm256_set1_epi64x(counter.word[1]);
    __m256i c2 = _mm256_set1_epi64x(counter.word[2]);
    __m256i c3 = _mm256_set1_epi64x(counter.word[3]);
    PhiloxKey round_key = key;
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const __m256i product0 = _mm256_mul_epu32(c0, _mm256_set1_epi64x(kPhiloxMultiplier0));
      const __m256i product1 = _mm256_mul_epu32(c2, _mm256_set1_epi64x(kPhiloxMultiplier1));
      const __m256i key0 = _mm256_set1_epi64x(round_key.word[0]);
      const __m256i key1 = _mm256_set1_epi64x(round_key.word[1]);
      c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), c1), key0);
      c1 = product1;
      c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c3), key1);
      c3 = product0;
      round_key = philox_next(round_key);
    }
    const __m256i c01 = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xaa);
    const __m256i c23 = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xaa);
    auto* out = reinterpret_cast<__m256i*>(words + 4 * first);
    _mm256_storeu_si256(out, _mm256_unpacklo_epi64(c01, c23));
    _mm256_storeu_si256(out + 1, _mm256_unpackhi_epi64(c01, c23));
  }
}

BIMKERN_AVX512 inline void philox_lanes(SimdTag<Simd::kAvx512>, PhiloxCounter counter, PhiloxKey key, uint32_t* words) {
  constexpr __mmask8 kEach = 0xff;  // GCC 12 warns of an uninitialized source in the unmasked forms
  constexpr __mmask16 kUpper = 0xaaaa;
  __m512i c0 = _mm512_add_epi64(_mm512_set1_epi64(counter.word[0]), _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0));
  __m512i c1 = _mm512_set1_epi64(counter.word[1]);
  __m512i c2 = _mm512_set1_epi64(counter.word[2]);
  __m512i c3 = _mm512_set1_epi64(counter.word[3]);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const __m512i product0 = _mm512_maskz_mul_epu32(kEach, c0, _mm512_set1_epi64(kPhiloxMultiplier0));
    const __m512i product1 = _mm512_maskz_mul_epu32(kEach, c2, _mm512_set1_epi64(kPhiloxMultiplier1));
    const __m512i key0 = _mm512_set1_epi64(key.word[0]);
    const __m512i key1 = _mm512_set1_epi64(key.word[1]);
    c0 = _mm512_xor_epi64(_mm512_xor_epi64(_mm512_maskz_srli_epi64(kEach, product1, 32), c1), key0);
    c1 = product1;
    c2 = _mm512_xor_epi64(_mm512_xor_epi64(_mm512_maskz_srli_epi64(kEach, product0, 32), c3), key1);
    c3 = product0;
    key = philox_next(key);
  }
  const __m512i c01 = _mm512_mask_blend_epi32(kUpper, c0, _mm512_maskz_slli_epi64(kEach, c1, 32));
  const __m512i c23 = _mm512_mask_blend_epi32(kUpper, c2, _mm512_maskz_slli_epi64(kEach, c3, 32));
  _mm512_storeu_si512(words, _mm512_maskz_unpacklo_epi64(kEach, c01, c23));
  _mm512_storeu_si512(words + 2 * kPhiloxLanes, _mm512_maskz_unpackhi_epi64(kEach, c01, c23));
}
#endif

}  // namespace bimkern
