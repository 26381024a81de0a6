// A register of float32 lanes on every instruction set, for fused multiply-adds: one rounding each, so that results are
// equal bit for bit. Where the machine has no such instruction the C library's function is called, which is slow.
//
// Lanes are passed by reference: by value, a function compiled for no set could not take them.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/simd.h"

#if BIMKERN_X86
#include <immintrin.h>
#endif

namespace bimkern {

// Load and store touch the first count lanes alone; what load leaves out is zero. Stream stores past the caches, to a
// whole line's multiple: fence_streams() before another thread reads.
template <Simd kSimd>
struct Lanes {
  static constexpr int kCount = 4;
  static constexpr int kRegisters = 2;  // side by side in a tile of a product
  float lane[kCount];

  BIMKERN_INLINE inline void clear() { std::fill_n(lane, kCount, 0.0f); }
  BIMKERN_INLINE inline void load(const float* from, int count) {
    for (int i = 0; i < kCount; ++i) {
      lane[i] = i < count ? from[i] : 0;
    }
  }
  BIMKERN_INLINE inline void store(float* to, int count) const { std::copy_n(lane, count, to); }
  BIMKERN_INLINE inline void stream(float* to) const { store(to, kCount); }
  BIMKERN_INLINE inline void add(const Lanes& other) {
    for (int i = 0; i < kCount; ++i) {
      lane[i] += other.lane[i];
    }
  }
  BIMKERN_INLINE inline void add_product(float a, const Lanes& b) {
    for (int i = 0; i < kCount; ++i) {
      lane[i] = std::fma(a, b.lane[i], lane[i]);
    }
  }
};

#if BIMKERN_X86
template <>
struct Lanes<Simd::kAvx2> {
  static constexpr int kCount = 8;
  static constexpr int kRegisters = 2;
  __m256 lane;

  BIMKERN_AVX2 static inline __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  BIMKERN_AVX2 inline void clear() { lane = _mm256_setzero_ps(); }
  BIMKERN_AVX2 inline void load(const float* from, int count) {
    lane = count == kCount ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first(count));
  }
  BIMKERN_AVX2 inline void store(float* to, int count) const {
    count == kCount ? _mm256_storeu_ps(to, lane) : _mm256_maskstore_ps(to, first(count), lane);
  }
  BIMKERN_AVX2 inline void stream(float* to) const { _mm256_stream_ps(to, lane); }
  BIMKERN_AVX2 inline void add(const Lanes& other) { lane = _mm256_add_ps(lane, other.lane); }
  BIMKERN_AVX2 inline void add_product(float a, const Lanes& b) {
    lane = _mm256_fmadd_ps(_mm256_set1_ps(a), b.lane, lane);
  }
};

template <>
struct Lanes<Simd::kAvx512> {
  static constexpr int kCount = 16;
  static constexpr int kRegisters = 4;
  __m512 lane;

  BIMKERN_AVX512 static inline __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
  BIMKERN_AVX512 inline void clear() { lane = _mm512_setzero_ps(); }
  BIMKERN_AVX512 inline void load(const float* from, int count) {
    lane = count == kCount ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(first(count), from);
  }
  BIMKERN_AVX512 inline void store(float* to, int count) const {
    count == kCount ? _mm512_storeu_ps(to, lane) : _mm512_mask_storeu_ps(to, first(count), lane);
  }
  BIMKERN_AVX512 inline void stream(float* to) const { _mm512_stream_ps(to, lane); }
  BIMKERN_AVX512 inline void add(const Lanes& other) { lane = _mm512_add_ps(lane, other.lane); }
  BIMKERN_AVX512 inline void add_product(float a, const Lanes& b) {
    lane = _mm512_fmadd_ps(_mm512_set1_ps(a), b.lane, lane);
  }
};
#endif

inline void fence_streams() {
#if BIMKERN_X86
  _mm_sfence();
#endif
}

}  // namespace bimkern
