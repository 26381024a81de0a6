// The loops of hog.cpp over one row of pixels or of cells, each to be inlined into vectorized().
//
// Letters: spread, the floats that a histogram takes: its bins, padded to whole kHogChunks.
#pragma once

#include <algorithm>

#include "core/rows.h"
#include "ops/hog.h"

namespace bimkern {

constexpr int64_t kHogChunk = 8;

BIMKERN_INLINE inline void mirror_border(int64_t width, float* row) {
  row[-1] = row[1];
  row[width] = row[width - 2];
}

// Other memory is used in between, so that the machine alone would notice too late what comes next.
template <typename T>
BIMKERN_INLINE inline void prefetch_row(const T* row, int64_t width) {
  constexpr int64_t kLine = 64;
  for (int64_t x = 0; x < width; x += kLine / static_cast<int64_t>(sizeof(T))) {
    __builtin_prefetch(row + x);
  }
}

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
  mirror_border(width, to);
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

template <int kQuads>
BIMKERN_INLINE inline void orient_row(const float* __restrict gx, const float* __restrict gy,
                                      const HogBoundaries& boundaries, const HogLevel& level,
                                      const int32_t* __restrict position_of_column, int64_t padded,
                                      float* __restrict magnitude, int32_t* __restrict position) {
  for (int64_t i = 0; i < padded; ++i) {
    const float x = gx[i] + level.bias_x;
    const float y = gy[i] + level.bias_y;
    magnitude[i] = hog_magnitude(x, y);
    position[i] = position_of_column[i] + hog_bin<kQuads>(x, y, boundaries);
  }
}

BIMKERN_INLINE inline void add_magnitudes(const float* __restrict magnitude, const int32_t* __restrict position,
                                          int64_t width, float* __restrict histograms) {
#pragma GCC unroll 8
  for (int64_t x = 0; x < width; ++x) {
    histograms[position[x]] += magnitude[x];
  }
}

BIMKERN_INLINE inline void add_pairs(const float* __restrict from, int64_t pairs, float* __restrict to) {
  for (int64_t i = 0; i < pairs; ++i) {
    to[i] = from[2 * i] + from[2 * i + 1];
  }
}

// Sums of eight columns each. Count: of columns, padded; pairs: scratch for half and a quarter of them.
BIMKERN_INLINE inline void sum_columns(const float* columns, int64_t count, float* pairs, float* sums) {
  add_pairs(columns, count / 2, pairs);
  add_pairs(pairs, count / 4, pairs + count / 2);
  add_pairs(pairs + count / 2, count / 8, sums);
}

// The same of one cell whose columns are histograms: [8, spread].
BIMKERN_INLINE inline void sum_histograms(const float* __restrict columns, int64_t spread, float* __restrict sums) {
  for (int64_t b = 0; b < spread; ++b) {
    const float* c = columns + b;
    sums[b] = ((c[0] + c[spread]) + (c[2 * spread] + c[3 * spread])) +
              ((c[4 * spread] + c[5 * spread]) + (c[6 * spread] + c[7 * spread]));
  }
}

// Norms of the histograms of a row of cells, as factors.
BIMKERN_INLINE inline void invert_norms(const float* __restrict histograms, int64_t vectors, int64_t spread,
                                        float* __restrict partial, float* __restrict inverse) {
  for (int64_t v = 0; v < vectors; ++v) {
    float sums[kHogChunk] = {};
    for (int64_t b = 0; b < spread; b += kHogChunk) {
      for (int64_t i = 0; i < kHogChunk; ++i) {
        const float value = histograms[v * spread + b + i];
        sums[i] += value * value;
      }
    }
    for (int64_t i = 0; i < kHogChunk; ++i) {
      partial[v * kHogChunk + i] = sums[i];
    }
  }
  for (int64_t v = 0; v < vectors; ++v) {
    const float* p = partial + v * kHogChunk;
    const float norm = std::sqrt(((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7])));
    inverse[v] = 1.0f / (norm < kHogEps ? kHogEps : norm);  // this way round NaN stays NaN
  }
}

// Normalizes a row of cells into values that lie densely, and leaves zeros for the next.
BIMKERN_INLINE inline void scale_row(float* __restrict histograms, const float* __restrict inverse, int64_t vectors,
                                     int64_t spread, int64_t bins, float* __restrict row) {
  const int64_t whole = std::max<int64_t>(0, vectors - ceil_div(spread - bins, bins));
  for (int64_t v = 0; v < whole; ++v) {
    for (int64_t b = 0; b < spread; b += kHogChunk) {  // beyond the bins: overwritten by the next
      for (int64_t i = 0; i < kHogChunk; ++i) {
        row[v * bins + b + i] = histograms[v * spread + b + i] * inverse[v];
      }
    }
  }
  for (int64_t v = whole; v < vectors; ++v) {
    for (int64_t b = 0; b < bins; ++b) {
      row[v * bins + b] = histograms[v * spread + b] * inverse[v];
    }
  }
  for (int64_t i = 0; i < vectors * spread; ++i) {
    histograms[i] = 0;
  }
}

// Values of cells into the vectors of groups.
template <typename T>
void write_groups(const Hog& args, const HogLevel& level, const float* row, int64_t cell_row, T* out) {
  const int64_t width = args.channels * args.bins;
  const int64_t area = level.group * level.group;
  for (int64_t x = 0; x < args.width / level.cell; ++x) {
    T* to = out + x / level.group * width * area + cell_row % level.group * level.group + x % level.group;
    for (int64_t q = 0; q < width; ++q) {
      to[q * area] = Arithmetic<T>::store(row[x * width + q]);
    }
  }
}

}  // namespace bimkern
