// The pixels of a few columns that hog.cpp describes at once, on every instruction set: equal bit for bit.
//
// A histogram per column, each bin a register, takes a pixel by a masked sum: no addresses, no store that the next
// pixel waits for. Lanes are passed by reference, as those of core/lanes.h.
#pragma once

#include <cmath>

#include "core/simd.h"
#include "ops/hog.h"

namespace bimkern {

template <Simd kSimd>
struct HogLanes {
  static constexpr int kCount = 8;
  float lane[kCount];

  BIMKERN_INLINE inline void clear() { std::fill_n(lane, kCount, 0.0f); }
  BIMKERN_INLINE inline void load(const float* from) { std::copy_n(from, kCount, lane); }
  BIMKERN_INLINE inline void store(float* to) const { std::copy_n(lane, kCount, to); }
  BIMKERN_INLINE inline void subtract(const HogLanes& a, const HogLanes& b) {
    for (int i = 0; i < kCount; ++i) {
      lane[i] = a.lane[i] - b.lane[i];
    }
  }
  // Weights 1, 2, 1.
  BIMKERN_INLINE inline void smooth(const HogLanes& a, const HogLanes& b, const HogLanes& c) {
    for (int i = 0; i < kCount; ++i) {
      lane[i] = (a.lane[i] + c.lane[i]) + (b.lane[i] + b.lane[i]);
    }
  }
  BIMKERN_INLINE inline void add(float value) {
    for (float& x : lane) {
      x += value;
    }
  }
  BIMKERN_INLINE inline void scale(const float* factors) {
    for (int i = 0; i < kCount; ++i) {
      lane[i] *= factors[i];
    }
  }
  BIMKERN_INLINE inline void magnitude(const HogLanes& x, const HogLanes& y) {
    for (int i = 0; i < kCount; ++i) {
      lane[i] = hog_magnitude(x.lane[i], y.lane[i]);
    }
  }
  BIMKERN_INLINE inline void slope(const HogLanes& x, const HogLanes& y) {
    for (int i = 0; i < kCount; ++i) {
      lane[i] = hog_slope(x.lane[i], y.lane[i]);
    }
  }
  // Adds a magnitude to the bin whose number is that of the boundaries that the slope reaches, in descending order.
  template <int kBins>
  BIMKERN_INLINE static inline void add_to_bins(const HogLanes& slope, const HogLanes& magnitude,
                                                const float* boundaries, HogLanes (&bins)[kBins]) {
    HogLanes rest = magnitude;  // where all boundaries so far are reached
#pragma GCC unroll 20
    for (int b = 0; b < kBins - 1; ++b) {
      for (int i = 0; i < kCount; ++i) {
        const bool reached = slope.lane[i] <= boundaries[b];
        bins[b].lane[i] += reached ? 0 : rest.lane[i];
        rest.lane[i] = reached ? rest.lane[i] : 0;
      }
    }
    for (int i = 0; i < kCount; ++i) {
      bins[kBins - 1].lane[i] += rest.lane[i];
    }
  }
};

#if BIMKERN_X86
template <>
struct HogLanes<Simd::kAvx512> {
  static constexpr int kCount = 16;
  __m512 lane;

  BIMKERN_AVX512 inline void clear() { lane = _mm512_setzero_ps(); }
  BIMKERN_AVX512 inline void load(const float* from) { lane = _mm512_loadu_ps(from); }
  BIMKERN_AVX512 inline void store(float* to) const { _mm512_storeu_ps(to, lane); }
  BIMKERN_AVX512 inline void subtract(const HogLanes& a, const HogLanes& b) { lane = _mm512_sub_ps(a.lane, b.lane); }
  BIMKERN_AVX512 inline void smooth(const HogLanes& a, const HogLanes& b, const HogLanes& c) {
    lane = _mm512_add_ps(_mm512_add_ps(a.lane, c.lane), _mm512_add_ps(b.lane, b.lane));
  }
  BIMKERN_AVX512 inline void add(float value) { lane = _mm512_add_ps(lane, _mm512_set1_ps(value)); }
  BIMKERN_AVX512 inline void scale(const float* factors) { lane = _mm512_mul_ps(lane, _mm512_loadu_ps(factors)); }
  BIMKERN_AVX512 inline void magnitude(const HogLanes& x, const HogLanes& y) {
    lane = _mm512_maskz_sqrt_ps(0xffff, _mm512_add_ps(_mm512_mul_ps(x.lane, x.lane), _mm512_mul_ps(y.lane, y.lane)));
  }
  BIMKERN_AVX512 inline void slope(const HogLanes& x, const HogLanes& y) {
    const __mmask16 sloped = _mm512_cmp_ps_mask(x.lane, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    lane = _mm512_mask_div_ps(_mm512_set1_ps(kInfinity), sloped, y.lane, x.lane);
  }
  template <int kBins>
  BIMKERN_AVX512 static inline void add_to_bins(const HogLanes& slope, const HogLanes& magnitude,
                                                const float* boundaries, HogLanes (&bins)[kBins]) {
    __mmask16 rest = 0xffff;
#pragma GCC unroll 20
    for (int b = 0; b < kBins - 1; ++b) {
      const __mmask16 reached = _mm512_cmp_ps_mask(slope.lane, _mm512_set1_ps(boundaries[b]), _CMP_LE_OQ);
      bins[b].lane = _mm512_mask_add_ps(bins[b].lane, _kandn_mask16(reached, rest), bins[b].lane, magnitude.lane);
      rest = reached;
    }
    bins[kBins - 1].lane = _mm512_mask_add_ps(bins[kBins - 1].lane, rest, bins[kBins - 1].lane, magnitude.lane);
  }
};
#endif

}  // namespace bimkern
