// The pixels of 16 columns that hog.cpp describes at once with AVX-512, bit for bit as it does one by one elsewhere.
//
// A histogram per column, each bin a register, takes a pixel by a masked sum: no addresses, no store that the next
// pixel waits for. Bound by arithmetic: per pixel a root, a quotient, and a comparison and a masked sum for every bin.
#pragma once

#include "core/simd.h"
#include "ops/hog.h"

#if BIMKERN_X86
#include <immintrin.h>

namespace bimkern {

struct HogLanes {
  static constexpr int kCount = 16;
  __m512 lane;

  BIMKERN_AVX512 inline void clear() { lane = _mm512_setzero_ps(); }
  BIMKERN_AVX512 inline void load(const float* from) { lane = _mm512_loadu_ps(from); }
  BIMKERN_AVX512 inline void store(float* to) const { _mm512_storeu_ps(to, lane); }
  BIMKERN_AVX512 inline void subtract(const HogLanes& a, const HogLanes& b) { lane = _mm512_sub_ps(a.lane, b.lane); }
  // Weights 1, 2, 1.
  BIMKERN_AVX512 inline void smooth(const HogLanes& a, const HogLanes& b, const HogLanes& c) {
    lane = _mm512_add_ps(_mm512_add_ps(a.lane, c.lane), _mm512_mul_ps(b.lane, _mm512_set1_ps(2)));
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
  // Adds a magnitude to the bin whose number is that of the boundaries that the slope reaches, in descending order.
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

// Histograms of a few columns, kRows pixels high.
template <int kRows, int kBins>
BIMKERN_INLINE inline void describe_lanes(const float* pixels, int64_t pitch, const float* const (&weights)[kRows],
                                          int64_t x, const HogLevel& level, const float* slopes,
                                          HogLanes (&bins)[kBins]) {
  const bool biased = level.bias_x != 0 || level.bias_y != 0;
  HogLanes left[kRows + 2], here[kRows + 2], right[kRows + 2], across[kRows + 2];
#pragma GCC unroll 10
  for (int y = 0; y < kRows + 2; ++y) {
    const float* row = pixels + (y - 1) * pitch + x;
    left[y].load(row - 1);
    here[y].load(row);
    right[y].load(row + 1);
    across[y].subtract(left[y], right[y]);
    if (y < 2) {
      continue;
    }
    HogLanes down[3], gx, gy, slope, magnitude;
    down[0].subtract(left[y - 2], left[y]);
    down[1].subtract(here[y - 2], here[y]);
    down[2].subtract(right[y - 2], right[y]);
    gx.smooth(across[y - 2], across[y - 1], across[y]);
    gy.smooth(down[0], down[1], down[2]);
    if (biased) {
      gx.add(level.bias_x);
      gy.add(level.bias_y);
    }
    slope.slope(gx, gy);
    magnitude.magnitude(gx, gy);
    magnitude.scale(weights[y - 2] + x);
    HogLanes::add_to_bins(slope, magnitude, slopes, bins);
  }
}

// Rows of pixels, from the first that is described on.
struct PixelRows {
  const float* first;
  int64_t pitch;
};

// What hog.cpp reads of a band: a copy with mirrored borders, and the image itself, whose columns in
// [HogLanes::kCount, image_end) need no border.
struct BandPixels {
  PixelRows copy, image;
  int64_t image_end;
};

// Histograms of all columns: [kBins, padded].
template <int kRows, int kBins>
BIMKERN_INLINE inline void describe_columns(const BandPixels& band, const float* const (&weights)[kRows], int64_t count,
                                            int64_t padded, const HogLevel& level, const float* slopes,
                                            float* columns) {
  for (int64_t x = 0; x < count; x += HogLanes::kCount) {
    const bool inside = x >= HogLanes::kCount && x < band.image_end;
    const PixelRows& rows = inside ? band.image : band.copy;
    HogLanes bins[kBins];
#pragma GCC unroll 20
    for (HogLanes& bin : bins) {
      bin.clear();
    }
    describe_lanes(rows.first, rows.pitch, weights, x, level, slopes, bins);
#pragma GCC unroll 20
    for (int b = 0; b < kBins; ++b) {
      bins[b].store(columns + b * padded + x);
    }
  }
}

}  // namespace bimkern
#endif
