// CPU kernel of hog.h: one pass over the image, bound by arithmetic.
//
// Parallel over images and strips of rows, as high as the least common multiple of the cells, so that no cell is
// shared. A thread goes through its strip in bands of eight rows, whose pixels it converts once, and turns row by row
// into gradients, magnitudes and bins in vectors; adding the magnitudes to the histograms is scalar, in the first-level
// cache. Cells of eight pixels are sums of columns, which AVX-512 keeps in registers (hog_lanes.h): float pixels are
// then read where they lie. Whenever a row of cells is complete it is added to the coarser cells that contain it,
// normalized and written. All sums go in the same order whatever the number of threads and the instruction set.
#include "ops/hog.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "ops/hog_lanes.h"
#include "ops/hog_rows.h"

namespace bimkern {
namespace {

constexpr int64_t kSums = 64;       // rows are padded to whole vectors of sums, histograms to whole kHogChunks
constexpr int64_t kBand = 8;        // rows
constexpr int64_t kVector = 16;     // pixels
constexpr int kMaxColumnBins = 18;  // that AVX-512 has registers for
constexpr int64_t kColumnFloats = ceil_div<int64_t>(kMaxColumnBins, kHogChunk) * kHogChunk;
constexpr int64_t kMaxDirectCell = 16;  // larger ones are sums of smaller, which keeps rounding and latency small
constexpr int64_t kMinFinerCell = 4;

int64_t round_up(int64_t count, int64_t multiple) { return ceil_div(count, multiple) * multiple; }

// What the threads share.
struct Plan {
  const Hog& args;
  HogBoundaries boundaries;
  int64_t strip;   // rows
  int64_t pixels;  // of a row, whole vectors
  int64_t padded;  // the same of sums of eight
  int64_t spread;  // floats of a histogram
  int32_t source[kMaxHogLevels];
  float slopes[kMaxColumnBins];              // boundaries, descending; behind them NaN, which nothing reaches
  bool only_columns = true;                  // all levels that start from pixels are in columns
  std::vector<float> weights;                // [window, padded], or a row of 1
  int32_t root[kMaxHogLevels];               // the level from pixels that a level comes from
  std::vector<int32_t> histogram_of_pixel;   // [padded]: in Scratch.columns
  std::vector<int32_t> histogram_of_column;  // [levels, padded]: where the histogram of a pixel's first channel starts

  explicit Plan(const Hog& hog)
      : args(hog),
        boundaries(hog_boundaries(hog.bins)),
        strip(1),
        pixels(round_up(hog.width, kVector)),
        padded(round_up(hog.width, kSums)),
        spread(round_up(hog.bins, kHogChunk)),
        weights(std::max(hog.window, 1) * padded, 1.0f),
        histogram_of_pixel(padded),
        histogram_of_column(hog.num_levels * padded) {
    for (int64_t x = 0; x < padded; ++x) {
      histogram_of_pixel[x] = static_cast<int32_t>(x * spread);
    }
    for (int32_t i = 0; i < args.num_levels; ++i) {
      const int64_t cell = args.level[i].cell;
      source[i] = hog_source(args, i);
      only_columns = only_columns && (source[i] >= 0 || in_columns(i));
      root[i] = source[i] < 0 ? i : root[source[i]];
      strip = std::lcm(strip, cell);
      for (int64_t x = 0; x < args.width; ++x) {
        histogram_of_column[i * padded + x] = static_cast<int32_t>(x / cell * args.channels * spread);
      }
    }
    std::fill_n(slopes, kMaxColumnBins, std::numeric_limits<float>::quiet_NaN());
    for (int32_t k = 1; k < std::min(args.bins, kMaxColumnBins + 1); ++k) {
      const int32_t middle = 2 * k - args.bins;  // the boundary's distance from the zero
      const float cotangent = middle == 0 ? 0 : bit_cast<float>(boundaries.cotangent[std::min(k, args.bins - k) - 1]);
      slopes[k - 1] = middle > 0 ? -cotangent : cotangent;
    }
    if (args.window > 0) {
      std::vector<float> line(args.window);
      hog_window(args.window, line.data());
      for (int64_t y = 0; y < args.window; ++y) {
        for (int64_t x = 0; x < args.width; ++x) {
          weights[y * padded + x] = line[y] * line[x % args.window];
        }
      }
    }
  }

  const float* weights_of_row(int64_t y) const { return weights.data() + y % std::max(args.window, 1) * padded; }

  // Whether cells are sums of columns.
  bool in_columns(int32_t i) const { return args.level[i].cell == kBand && args.bins <= kMaxColumnBins; }

  int64_t cells(int32_t i) const { return args.width / args.level[i].cell; }  // of a row
  int64_t row_floats(int32_t i) const { return cells(i) * args.channels * spread; }
};

// What a thread has for itself.
struct Scratch {
  std::vector<float> storage;
  float* pixels;  // [C, kBand + 2, pitch], from the row above the band
  int64_t pitch;
  int64_t first_row = 0;         // of the band
  const float* image = nullptr;  // the band's first row, where columns from kVector to image_end are read from there
  int64_t image_end = 0;
  float *columns, *sums;                 // [padded, spread] or [kMaxColumnBins, padded], and [2 * padded]
  float *gx, *gy, *magnitude;            // [padded]
  float* histograms[kMaxHogLevels];      // [cells, C, spread] of the current row of cells
  float *inverse_norms, *partial, *row;  // [vectors], [vectors, kHogChunk], [vectors, spread]
  std::vector<int32_t> position;         // [padded]

  explicit Scratch(const Plan& plan) : pitch(plan.padded + 2 * kVector), position(plan.padded) {
    const int64_t channels = plan.args.channels;
    int64_t vectors = 0;
    int64_t total = (kBand + 2) * channels * pitch + (5 + kColumnFloats) * plan.padded;
    for (int32_t i = 0; i < plan.args.num_levels; ++i) {
      total += plan.row_floats(i);
      vectors = std::max(vectors, round_up(plan.cells(i) * channels, kVector));
    }
    storage.resize(total + vectors * (1 + kHogChunk + plan.spread));
    float* next = storage.data();
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    pixels = take((kBand + 2) * channels * pitch) + kVector;
    columns = take(kColumnFloats * plan.padded);
    sums = take(2 * plan.padded);
    gx = take(plan.padded);
    gy = take(plan.padded);
    magnitude = take(plan.padded);
    for (int32_t i = 0; i < plan.args.num_levels; ++i) {
      histograms[i] = take(plan.row_floats(i));
    }
    inverse_norms = take(vectors);
    partial = take(vectors * kHogChunk);
    row = take(vectors * plan.spread);
  }

  float* pixel_row(int64_t channel, int64_t y) const {
    return pixels + (channel * (kBand + 2) + y - first_row + 1) * pitch;
  }
};

// Where columns can be read from the image itself, a copy is made of the others alone.
bool reads_image(const Plan& plan, int64_t rows, const Scratch& scratch, Simd simd) {
  const Hog& args = plan.args;
  return simd == Simd::kAvx512 && plan.only_columns && args.column_stride == 1 && args.width > 2 * kVector &&
         scratch.first_row > 0 && scratch.first_row + rows < args.height;
}

// Rows are reflected at the border without repeating it, like columns. Vectorized by itself: the type of the pixels
// matters nowhere else.
template <typename T>
void load_band(const Plan& plan, int64_t image, int64_t rows, Scratch& scratch, Simd simd) {
  const Hog& args = plan.args;
  const T* pixels = static_cast<const T*>(args.pixels) + image * args.image_stride;
  scratch.image_end = 0;
  if constexpr (std::is_same_v<T, float>) {
    if (reads_image(plan, rows, scratch, simd)) {
      scratch.image = pixels + scratch.first_row * args.row_stride;
      scratch.image_end = (args.width - 1) / kVector * kVector;
    }
  }
  vectorized(simd, [&](auto set) BIMKERN_INLINE {
    for (int64_t i = 0; i < args.channels * (rows + 2); ++i) {
      const int64_t c = i / (rows + 2);
      const int64_t y = scratch.first_row - 1 + i % (rows + 2);
      const int64_t mirrored = y < 0 ? -y : y < args.height ? y : 2 * args.height - 2 - y;
      const T* plane = pixels + c * args.channel_stride;
      const T* from = plane + mirrored * args.row_stride;
      float* to = scratch.pixel_row(c, y);
      if (scratch.image_end == 0) {
        load_row(set, from, args.column_stride, args.width, to);
      } else if constexpr (std::is_same_v<T, float>) {
        prefetch_row(plane + std::min(mirrored + kBand, args.height - 1) * args.row_stride, args.width);
        std::copy_n(from, kVector + 1, to);
        std::copy(from + scratch.image_end - 1, from + args.width, to + scratch.image_end - 1);
        mirror_border(args.width, to);
      }
    }
  });
}

using LoadBand = void (*)(const Plan&, int64_t image, int64_t rows, Scratch&, Simd);

template <typename Set, typename T>
BIMKERN_INLINE inline void write_cells(Set set, const Plan& plan, int32_t i, int64_t image, int64_t cell_row,
                                       Scratch& scratch) {
  const Hog& args = plan.args;
  const HogLevel& level = args.level[i];
  const int64_t vectors = plan.cells(i) * args.channels;
  const int64_t group_row = (image * (args.height / level.cell) + cell_row) / level.group * level.group;
  T* out = static_cast<T*>(level.out) + group_row * vectors * args.bins;
  float* row = scratch.row;
  if constexpr (std::is_same_v<T, float>) {
    row = level.group == 1 ? out : row;
  }
  scale_row(scratch.histograms[i], scratch.inverse_norms, vectors, plan.spread, args.bins, row);
  if (level.group > 1) {
    write_groups(args, level, row, cell_row, out);
  } else if constexpr (!std::is_same_v<T, float>) {
    store_row(set, row, vectors * args.bins, out);
  }
}

// A row of cells is complete: hands it on to coarser cells and writes it.
template <typename Set>
BIMKERN_INLINE inline void finish_cells(Set set, const Plan& plan, int32_t i, int64_t image, int64_t cell_row,
                                        Scratch& scratch) {
  const Hog& args = plan.args;
  const int64_t vectors = plan.cells(i) * args.channels;
  const int64_t cell_floats = args.channels * plan.spread;
  float* histograms = scratch.histograms[i];
  for (int32_t j = i + 1; j < args.num_levels; ++j) {
    if (plan.source[j] == i) {
      const int64_t factor = args.level[j].cell / args.level[i].cell;
      for (int64_t x = 0; x < plan.cells(i); x += factor) {
        // Across first, then down: long sums round less in two steps.
        std::copy_n(histograms + x * cell_floats, cell_floats, scratch.row);
        for (int64_t k = 1; k < factor; ++k) {
          accumulate_row(set, histograms + (x + k) * cell_floats, cell_floats, scratch.row);
        }
        accumulate_row(set, scratch.row, cell_floats, scratch.histograms[j] + x / factor * cell_floats);
      }
    }
  }
  if (args.level[i].out == nullptr) {
    std::fill_n(histograms, vectors * plan.spread, 0.0f);
    return;
  }
  invert_norms(histograms, vectors, plan.spread, scratch.partial, scratch.inverse_norms);
  if (args.out_dtype == DType::kBFloat16) {
    write_cells<Set, bfloat16>(set, plan, i, image, cell_row, scratch);
  } else {
    write_cells<Set, float>(set, plan, i, image, cell_row, scratch);
  }
}

// Adds one row of one channel to histograms that begin where the positions of the columns say.
template <int kQuads>
BIMKERN_INLINE inline void add_pixels(const Plan& plan, int32_t i, int64_t y, int64_t channel,
                                      const int32_t* position_of_column, float* histograms, Scratch& scratch) {
  gradient_row(scratch.pixel_row(channel, y - 1), scratch.pixel_row(channel, y), scratch.pixel_row(channel, y + 1),
               plan.pixels, scratch.gx, scratch.gy);
  orient_row<kQuads>(scratch.gx, scratch.gy, plan.boundaries, plan.args.level[i], position_of_column, plan.pixels,
                     scratch.magnitude, scratch.position.data());
  if (plan.args.window > 0) {
    const float* weights = plan.weights_of_row(y);
    for (int64_t x = 0; x < plan.pixels; ++x) {
      scratch.magnitude[x] *= weights[x];
    }
  }
  add_magnitudes(scratch.magnitude, scratch.position.data(), plan.args.width, histograms);
}

// The histograms of a channel in a row of cells, as sums of columns.
template <int kQuads>
void add_columns(const Plan& plan, int32_t i, int64_t channel, Scratch& scratch, Simd simd) {
  vectorized(simd, [&](auto) BIMKERN_INLINE {
    std::fill_n(scratch.columns, plan.spread * plan.padded, 0.0f);
    for (int64_t y = scratch.first_row; y < scratch.first_row + kBand; ++y) {
      add_pixels<kQuads>(plan, i, y, channel, plan.histogram_of_pixel.data(), scratch.columns, scratch);
    }
    for (int64_t x = 0; x < plan.cells(i); ++x) {
      sum_histograms(scratch.columns + x * kBand * plan.spread, plan.spread,
                     scratch.histograms[i] + (x * plan.args.channels + channel) * plan.spread);
    }
  });
}

#if BIMKERN_X86
// The same, many columns at once.
template <int kBins>
void add_columns_avx512(const Plan& plan, int32_t i, int64_t channel, Scratch& scratch) {
  const float* weights[kBand];
  for (int64_t k = 0; k < kBand; ++k) {
    weights[k] = plan.weights_of_row(scratch.first_row + k);
  }
  const BandPixels band{{scratch.pixel_row(channel, scratch.first_row), scratch.pitch},
                        {scratch.image + channel * plan.args.channel_stride, plan.args.row_stride},
                        scratch.image_end};
  run_avx512([&](auto) BIMKERN_INLINE {
    describe_columns<kBand, kBins>(band, weights, plan.pixels, plan.padded, plan.args.level[i], plan.slopes,
                                   scratch.columns);
    float* sums = scratch.sums + plan.padded;
    for (int64_t b = 0; b < plan.args.bins; ++b) {
      sum_columns(scratch.columns + b * plan.padded, plan.padded, scratch.sums, sums);
      float* histograms = scratch.histograms[i] + channel * plan.spread + b;
      for (int64_t x = 0; x < plan.cells(i); ++x) {
        histograms[x * plan.args.channels * plan.spread] = sums[x];
      }
    }
  });
}
#endif

template <int kQuads>
void add_band(const Plan& plan, int32_t i, int64_t channel, Scratch& scratch, Simd simd) {
#if BIMKERN_X86
  if (simd == Simd::kAvx512) {
    return plan.args.bins <= 9 ? add_columns_avx512<9>(plan, i, channel, scratch)
                               : add_columns_avx512<kMaxColumnBins>(plan, i, channel, scratch);
  }
#endif
  add_columns<kQuads>(plan, i, channel, scratch, simd);
}

// Finishes all cells that come from a level and end above a row.
template <typename Set>
BIMKERN_INLINE inline void finish_levels(Set set, const Plan& plan, int32_t root, int64_t image, int64_t next,
                                         Scratch& scratch) {
  for (int32_t i = root; i < plan.args.num_levels; ++i) {
    const int64_t cell = plan.args.level[i].cell;
    if (plan.root[i] == root && next % cell == 0) {
      finish_cells(set, plan, i, image, next / cell - 1, scratch);
    }
  }
}

template <int kQuads>
void hog_band(const Plan& plan, int64_t image, int64_t rows, Scratch& scratch, Simd simd) {
  const Hog& args = plan.args;
  const int64_t end = scratch.first_row + rows;
  for (int32_t i = 0; i < args.num_levels; ++i) {
    if (plan.source[i] >= 0) {
      continue;
    }
    if (plan.in_columns(i)) {
      for (int64_t c = 0; c < args.channels; ++c) {
        add_band<kQuads>(plan, i, c, scratch, simd);
      }
      vectorized(simd, [&](auto set) BIMKERN_INLINE { finish_levels(set, plan, i, image, end, scratch); });
      continue;
    }
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t y = scratch.first_row; y < end; ++y) {
        for (int64_t c = 0; c < args.channels; ++c) {
          add_pixels<kQuads>(plan, i, y, c, plan.histogram_of_column.data() + i * plan.padded,
                             scratch.histograms[i] + c * plan.spread, scratch);
        }
        finish_levels(set, plan, i, image, y + 1, scratch);
      }
    });
  }
}

// Puts a finer level below every large cell that starts from the pixels, where one divides it.
Hog with_finer_levels(Hog args) {
  for (int32_t i = 0; i < args.num_levels; ++i) {
    HogLevel finer = args.level[i];
    const bool in_bands = finer.cell > kBand && finer.cell % kBand == 0;
    if ((finer.cell <= kMaxDirectCell && !in_bands) || hog_source(args, i) >= 0) {
      continue;
    }
    finer.out = nullptr;
    finer.cell = in_bands ? kBand : kMinFinerCell;
    while (args.level[i].cell % finer.cell != 0) {
      ++finer.cell;
    }
    if (finer.cell <= kMaxDirectCell) {
      HogLevel* const end = args.level + args.num_levels++;
      const auto by_cell = [](const HogLevel& a, const HogLevel& b) { return a.cell < b.cell; };
      HogLevel* const position = std::upper_bound(args.level, end, finer, by_cell);
      std::move_backward(position, end, end + 1);
      *position = finer;
    }
  }
  return args;
}

}  // namespace

void hog(const Hog& asked, const Parallel& parallel, Simd simd) {
  if (asked.images == 0 || asked.channels == 0) {
    return;
  }
  const Hog args = with_finer_levels(asked);
  const Plan plan(args);
  const int64_t strip_bytes = plan.strip * args.width * args.channels * static_cast<int64_t>(sizeof(float));
  LoadBand load = nullptr;
  dispatch_hog_pixels(args.dtype, [&](auto type) { load = load_band<decltype(type)>; });
  const int64_t strips = args.height / plan.strip;
  dispatch_quads(args.bins, [&](auto quads) {
    parallel(args.images * strips, grain_rows(strip_bytes), [&](int64_t begin, int64_t end) {
      Scratch scratch(plan);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t stop = (unit % strips + 1) * plan.strip;
        for (int64_t y = stop - plan.strip; y < stop; y += kBand) {
          const int64_t rows = std::min(kBand, stop - y);
          scratch.first_row = y;
          load(plan, unit / strips, rows, scratch, simd);
          hog_band<decltype(quads)::value>(plan, unit / strips, rows, scratch, simd);
        }
      }
    });
  });
}

}  // namespace bimkern
