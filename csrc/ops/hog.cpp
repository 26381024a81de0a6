// CPU kernel of hog.h: one pass over the image, bound by arithmetic.
//
// Parallel over images and strips of rows, as high as the least common multiple of the cells, so that no cell is
// shared. A thread goes through its strip row by row. It converts a row of pixels once, keeps three of them, and turns
// them into gradients, magnitudes and bins in vectors; adding the magnitudes to the histograms is scalar, in the
// first-level cache. Whenever a row of cells is complete it is added to the coarser cells that contain it, normalized
// and written. All sums go in the same order whatever the number of threads and the instruction set.
#include "ops/hog.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "ops/hog_rows.h"

namespace bimkern {
namespace {

constexpr int64_t kLane = 16;           // rows are padded to whole vectors, histograms to whole kHogChunks
constexpr int64_t kMaxDirectCell = 16;  // larger ones are sums of smaller, which keeps rounding and latency small
constexpr int64_t kMinFinerCell = 4;

int64_t round_up(int64_t count, int64_t multiple) { return ceil_div(count, multiple) * multiple; }

// What the threads share.
struct Plan {
  const Hog& args;
  HogBoundaries boundaries;
  int64_t strip;   // rows
  int64_t padded;  // pixels of a row
  int64_t spread;  // floats of a histogram
  int32_t source[kMaxHogLevels];
  std::vector<float> column_weights;         // [padded], tiled
  std::vector<int32_t> histogram_of_column;  // [levels, padded]: where the histogram of a pixel's first channel starts

  explicit Plan(const Hog& hog)
      : args(hog),
        boundaries(hog_boundaries(hog.bins)),
        strip(1),
        padded(round_up(hog.width, kLane)),
        spread(round_up(hog.bins, kHogChunk)),
        column_weights(padded),
        histogram_of_column(hog.num_levels * padded) {
    for (int32_t i = 0; i < args.num_levels; ++i) {
      const int64_t cell = args.level[i].cell;
      source[i] = hog_source(args, i);
      strip = std::lcm(strip, cell);
      for (int64_t x = 0; x < args.width; ++x) {
        histogram_of_column[i * padded + x] = static_cast<int32_t>(x / cell * args.channels * spread);
      }
    }
    if (args.window > 0) {
      hog_window(args.window, column_weights.data());
      for (int64_t x = args.window; x < args.width; ++x) {
        column_weights[x] = column_weights[x - args.window];
      }
    }
  }

  int64_t cells(int32_t i) const { return args.width / args.level[i].cell; }  // of a row
  int64_t row_floats(int32_t i) const { return cells(i) * args.channels * spread; }
};

// What a thread has for itself.
struct Scratch {
  std::vector<float> storage;
  float* pixels[3];  // [C, pitch] of the rows y - 1, y, y + 1 at y % 3
  int64_t pitch;
  float *gx, *gy, *magnitude;            // [padded]
  float* histograms[kMaxHogLevels];      // [cells, C, spread] of the current row of cells
  float *inverse_norms, *partial, *row;  // [vectors], [vectors, kHogChunk], [vectors, spread]
  std::vector<int32_t> place;            // [padded]

  explicit Scratch(const Plan& plan) : pitch(plan.padded + 2 * kLane), place(plan.padded) {
    const int64_t channels = plan.args.channels;
    int64_t vectors = 0;
    int64_t total = 3 * channels * pitch + 3 * plan.padded;
    for (int32_t i = 0; i < plan.args.num_levels; ++i) {
      total += plan.row_floats(i);
      vectors = std::max(vectors, round_up(plan.cells(i) * channels, kLane));
    }
    storage.resize(total + vectors * (1 + kHogChunk + plan.spread));
    float* next = storage.data();
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    for (float*& rows : pixels) {
      rows = take(channels * pitch) + kLane;
    }
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
};

// Rows are reflected at the border without repeating it, like columns. Vectorized by itself: the type of the pixels
// matters nowhere else.
template <typename T>
void load_rows(const Hog& args, int64_t image, int64_t y, Scratch& scratch, Simd simd) {
  const int64_t mirrored = y < 0 ? -y : y < args.height ? y : 2 * args.height - 2 - y;
  const T* from = static_cast<const T*>(args.pixels) + image * args.image_stride + mirrored * args.row_stride;
  float* to = scratch.pixels[(y + 3) % 3];
  vectorized(simd, [&](auto set) BIMKERN_INLINE {
    for (int64_t c = 0; c < args.channels; ++c) {
      load_row(set, from + c * args.channel_stride, args.column_stride, args.width, to + c * scratch.pitch);
    }
  });
}

using LoadRows = void (*)(const Hog&, int64_t image, int64_t y, Scratch&, Simd);

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

// Adds one row of one channel to the histograms of every level that starts from pixels.
template <int kQuads>
BIMKERN_INLINE inline void add_pixels(const Plan& plan, int64_t y, int64_t channel, Scratch& scratch) {
  const Hog& args = plan.args;
  const auto row = [&](int64_t at) { return scratch.pixels[(at + 3) % 3] + channel * scratch.pitch; };
  gradient_row(row(y - 1), row(y), row(y + 1), plan.padded, scratch.gx, scratch.gy);
  for (int32_t i = 0; i < args.num_levels; ++i) {
    if (plan.source[i] >= 0) {
      continue;
    }
    orient_row<kQuads>(scratch.gx, scratch.gy, plan.boundaries, args.level[i],
                       plan.histogram_of_column.data() + i * plan.padded, plan.padded, scratch.magnitude,
                       scratch.place.data());
    if (args.window > 0) {
      const float row_weight = plan.column_weights[y % args.window];
      for (int64_t x = 0; x < plan.padded; ++x) {
        scratch.magnitude[x] *= row_weight * plan.column_weights[x];
      }
    }
    add_magnitudes(scratch.magnitude, scratch.place.data(), args.width, scratch.histograms[i] + channel * plan.spread);
  }
}

template <int kQuads>
void hog_strips(const Plan& plan, LoadRows load, int64_t begin, int64_t end, Simd simd) {
  const Hog& args = plan.args;
  const int64_t strips = args.height / plan.strip;
  Scratch scratch(plan);
  vectorized(simd, [&](auto set) BIMKERN_INLINE {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / strips;
      const int64_t first = unit % strips * plan.strip;
      load(args, image, first - 1, scratch, simd);
      load(args, image, first, scratch, simd);
      for (int64_t y = first; y < first + plan.strip; ++y) {
        load(args, image, y + 1, scratch, simd);
        for (int64_t c = 0; c < args.channels; ++c) {
          add_pixels<kQuads>(plan, y, c, scratch);
        }
        for (int32_t i = 0; i < args.num_levels; ++i) {
          if ((y + 1) % args.level[i].cell == 0) {
            finish_cells(set, plan, i, image, y / args.level[i].cell, scratch);
          }
        }
      }
    }
  });
}

// Puts a finer level below every large cell that starts from the pixels, where one divides it.
Hog with_finer_levels(Hog args) {
  for (int32_t i = 0; i < args.num_levels; ++i) {
    HogLevel finer = args.level[i];
    if (finer.cell <= kMaxDirectCell || hog_source(args, i) >= 0) {
      continue;
    }
    finer.out = nullptr;
    finer.cell = kMinFinerCell;
    while (args.level[i].cell % finer.cell != 0) {
      ++finer.cell;
    }
    if (finer.cell <= kMaxDirectCell) {
      HogLevel* const end = args.level + args.num_levels++;
      const auto by_cell = [](const HogLevel& a, const HogLevel& b) { return a.cell < b.cell; };
      HogLevel* const place = std::upper_bound(args.level, end, finer, by_cell);
      std::move_backward(place, end, end + 1);
      *place = finer;
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
  LoadRows load = nullptr;
  dispatch_hog_pixels(args.dtype, [&](auto type) { load = load_rows<decltype(type)>; });
  dispatch_quads(args.bins, [&](auto quads) {
    parallel(args.images * (args.height / plan.strip), grain_rows(strip_bytes),
             [&](int64_t begin, int64_t end) { hog_strips<decltype(quads)::value>(plan, load, begin, end, simd); });
  });
}

}  // namespace bimkern
