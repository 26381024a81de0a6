// The loops of hog.cpp over one row of pixels or of cells of one channel, each to be inlined into vectorized().
#pragma once

#include <algorithm>

#include "core/rows.h"
#include "ops/hog_lanes.h"

namespace bimkern {

// One row of one channel, with its mirrored border.
template <typename Set, typename T>
BIMKERN_INLINE inline void load_row(Set set, const T* from, int64_t stride, int64_t width, float* __restrict to) {
  int64_t x = 0;
  if (stride == 1) {
    if constexpr (sizeof(T) == 2) {
      for (; x < converted_part<T>(width); x += kConverted) {
        widen(set, from + x, to + x);
      }
    }
    for (; x < width; ++x) {
      to[x] = pixel(from[x]);
    }
  } else {
    for (; x < width; ++x) {
      to[x] = pixel(from[x * stride]);
    }
  }
  to[-1] = to[1];
  to[width] = to[width - 2];
}

// Differences first, then sums: what is equal on both sides leaves an exact zero.
BIMKERN_INLINE inline void gradient_row(const float* __restrict above, const float* __restrict here,
                                        const float* __restrict below, int64_t padded, float* __restrict gx,
                                        float* __restrict gy) {
  for (int64_t x = 0; x < padded; ++x) {
    const float middle_x = here[x - 1] - here[x + 1];
    const float middle_y = above[x] - below[x];
    gx[x] = (above[x - 1] - above[x + 1]) + (below[x - 1] - below[x + 1]) + (middle_x + middle_x);
    gy[x] = (above[x - 1] - below[x - 1]) + (above[x + 1] - below[x + 1]) + (middle_y + middle_y);
  }
}

// Magnitudes of a row of pixels, and where they belong in histograms [bins, pitch].
template <int kQuads>
BIMKERN_INLINE inline void orient_row(const float* __restrict gx, const float* __restrict gy,
                                      const HogBoundaries& boundaries, const HogLevel& level,
                                      const float* __restrict weights, int64_t padded, float* __restrict magnitude,
                                      int32_t* __restrict position) {
  for (int64_t i = 0; i < padded; ++i) {
    const float x = gx[i] + level.bias_x;
    const float y = gy[i] + level.bias_y;
    magnitude[i] = hog_magnitude(x, y) * weights[i];
    position[i] = hog_bin<kQuads>(x, y, boundaries) * static_cast<int32_t>(padded) + static_cast<int32_t>(i);
  }
}

BIMKERN_INLINE inline void add_magnitudes(const float* __restrict magnitude, const int32_t* __restrict position,
                                          int64_t width, float* __restrict histograms) {
#pragma GCC unroll 8
  for (int64_t x = 0; x < width; ++x) {
    histograms[position[x]] += magnitude[x];
  }
}

// Histograms of a few columns, kRows pixels high.
template <int kRows, int kBins, typename Lanes>
BIMKERN_INLINE inline void describe_lanes(const float* pixels, int64_t pitch, const float* const (&weights)[kRows],
                                          int64_t x, const HogLevel& level, const float* slopes,
                                          Lanes (&bins)[kBins]) {
  const bool biased = level.bias_x != 0 || level.bias_y != 0;
  Lanes left[kRows + 2], here[kRows + 2], right[kRows + 2], across[kRows + 2];
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
    Lanes down[3], gx, gy, slope, magnitude;
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
    Lanes::add_to_bins(slope, magnitude, slopes, bins);
  }
}

// Histograms of all columns, kRows pixels high: [kBins, padded].
template <int kRows, int kBins, Simd kSimd>
BIMKERN_INLINE inline void describe_columns(SimdTag<kSimd>, const float* pixels, int64_t pitch,
                                            const float* const (&weights)[kRows], int64_t padded,
                                            const HogLevel& level, const float* slopes, float* columns) {
  using Lanes = HogLanes<kSimd>;
  for (int64_t x = 0; x < padded; x += Lanes::kCount) {
    Lanes bins[kBins];
#pragma GCC unroll 20
    for (int b = 0; b < kBins; ++b) {
      bins[b].load(columns + b * padded + x);
    }
    describe_lanes(pixels, pitch, weights, x, level, slopes, bins);
#pragma GCC unroll 20
    for (int b = 0; b < kBins; ++b) {
      bins[b].store(columns + b * padded + x);
    }
  }
}

// Sums of neighbors.
BIMKERN_INLINE inline void add_pairs(const float* __restrict from, int64_t pairs, float* __restrict to) {
  for (int64_t i = 0; i < pairs; ++i) {
    to[i] = from[2 * i] + from[2 * i + 1];
  }
}

// to += sums of so many neighbors. Where their number is even, pairs first: long sums round less in steps. Row: scratch
// for two rows of pairs.
BIMKERN_INLINE inline void add_neighbors(const float* from, int64_t cells, int64_t factor, float* scratch,
                                         int64_t pitch, float* __restrict to) {
  int64_t count = cells * factor;
  float* next = scratch;
  for (; factor % 2 == 0; factor /= 2) {
    count /= 2;
    add_pairs(from, count, next);
    from = next;
    next = next == scratch ? scratch + pitch : scratch;
  }
  if (factor == 1) {
    for (int64_t x = 0; x < cells; ++x) {
      to[x] += from[x];
    }
    return;
  }
  for (int64_t x = 0; x < cells; ++x) {
    float sum = from[x * factor];
    for (int64_t k = 1; k < factor; ++k) {
      sum += from[x * factor + k];
    }
    to[x] += sum;
  }
}

// Norms of the histograms [bins, pitch] of a row of cells, as factors.
BIMKERN_INLINE inline void invert_norms(const float* __restrict histograms, int64_t cells, int64_t bins, int64_t pitch,
                                        float* __restrict inverse) {
  std::fill_n(inverse, cells, 0.0f);
  for (int64_t b = 0; b < bins; ++b) {
    for (int64_t x = 0; x < cells; ++x) {
      inverse[x] += histograms[b * pitch + x] * histograms[b * pitch + x];
    }
  }
  for (int64_t x = 0; x < cells; ++x) {
    const float norm = std::sqrt(inverse[x]);
    inverse[x] = 1.0f / (norm < kHogEps ? kHogEps : norm);  // this way round NaN stays NaN
  }
}

}  // namespace bimkern
