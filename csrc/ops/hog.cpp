// CPU kernel of hog.h: one pass over the image, bound by arithmetic.
//
// Parallel over images, strips of rows as high as the least common multiple of the cells, so that no cell is shared,
// and channels. A thread goes through its strip in bands of a few rows, of which it converts the pixels once. Cells of
// 4 and 8 pixels are described many columns at once, in registers (hog_lanes.h); for others, gradients, magnitudes and
// bins are computed in vectors, and magnitudes added to the histograms one by one. Whenever a row of cells is complete
// it is added to the coarser cells that contain it, normalized and written. All sums go in the same order whatever the
// number of threads and the instruction set.
#include "ops/hog.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "ops/hog_rows.h"

namespace bimkern {
namespace {

constexpr int64_t kLane = 16;           // rows are padded to whole vectors
constexpr int64_t kBand = 8;            // rows whose pixels are converted at once
constexpr int kMaxLaneBins = 18;  // that fit registers

int64_t round_up(int64_t count, int64_t multiple) { return ceil_div(count, multiple) * multiple; }

// What the threads share.
struct Plan {
  const Hog& args;
  HogBoundaries boundaries;
  float slopes[kMaxLaneBins];  // boundaries of both signs, descending; behind them NaN, which nothing reaches
  int64_t strip;               // rows
  int64_t padded;              // pixels of a row
  int64_t window;              // rows of weights, of 1 where the caller wants none
  int32_t source[kMaxHogLevels];
  int32_t root[kMaxHogLevels];           // the level from whose histograms those of a level come, and theirs from pixels
  std::vector<float> weights;            // [window, padded]
  std::vector<int32_t> offset_of_cell;   // [levels, padded]: of a cell's values in a row of vectors

  explicit Plan(const Hog& hog)
      : args(hog),
        boundaries(hog_boundaries(hog.bins)),
        strip(1),
        padded(round_up(hog.width, kLane)),
        window(std::max(hog.window, 1)),
        weights(window * padded, 1.0f),
        offset_of_cell(hog.num_levels * padded) {
    std::fill_n(slopes, kMaxLaneBins, std::numeric_limits<float>::quiet_NaN());
    const int32_t positive = (args.bins - 1) / 2;
    for (int32_t k = 0; k < positive && args.bins <= kMaxLaneBins; ++k) {
      slopes[k] = bit_cast<float>(boundaries.cotangent[k]);
      slopes[args.bins - 2 - k] = -slopes[k];
    }
    if (args.bins % 2 == 0 && args.bins <= kMaxLaneBins) {
      slopes[positive] = 0;
    }
    for (int32_t i = 0; i < args.num_levels; ++i) {
      const HogLevel& level = args.level[i];
      source[i] = hog_source(args, i);
      root[i] = source[i] < 0 ? i : root[source[i]];
      strip = std::lcm(strip, level.cell);
      for (int64_t x = 0; x < cells(i); ++x) {
        const int64_t vector = args.channels * args.bins * level.group * level.group;
        offset_of_cell[i * padded + x] = static_cast<int32_t>(x / level.group * vector + x % level.group);
      }
    }
    if (args.window > 0) {
      std::vector<float> line(window);
      hog_window(args.window, line.data());
      for (int64_t y = 0; y < window; ++y) {
        for (int64_t x = 0; x < args.width; ++x) {
          weights[y * padded + x] = line[y] * line[x % window];
        }
      }
    }
  }

  int64_t cells(int32_t i) const { return args.width / args.level[i].cell; }  // of a row
  int64_t pitch(int32_t i) const { return round_up(cells(i), kLane); }        // of their histograms
  int64_t lane_bins() const { return args.bins <= 9 ? 9 : args.bins <= kMaxLaneBins ? kMaxLaneBins : args.bins; }
  const float* weights_of_row(int64_t y) const { return weights.data() + y % window * padded; }
};

// What a thread has for itself, of one channel.
struct Scratch {
  std::vector<float> storage;
  float* pixels;  // [kBand + 2, pitch], from the row above the band
  int64_t pitch, first_row;
  float *gx, *gy, *magnitude;        // [padded]
  float *inverse_norms, *row;        // [padded], [2 * padded]
  float* columns[kMaxHogLevels];     // [bins, padded]: of the pixels of a column in the current row of cells
  float* histograms[kMaxHogLevels];  // [bins, cells] of the current row of cells
  std::vector<int32_t> position;     // [padded]

  explicit Scratch(const Plan& plan) : pitch(plan.padded + 2 * kLane), position(plan.padded) {
    int64_t total = (kBand + 2) * pitch + 6 * plan.padded;
    for (int32_t i = 0; i < plan.args.num_levels; ++i) {
      total += plan.args.bins * plan.pitch(i) + (plan.source[i] < 0 ? plan.lane_bins() * plan.padded : 0);
    }
    storage.resize(total);
    float* next = storage.data();
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    pixels = take((kBand + 2) * pitch);
    gx = take(plan.padded);
    gy = take(plan.padded);
    magnitude = take(plan.padded);
    inverse_norms = take(plan.padded);
    row = take(2 * plan.padded);
    for (int32_t i = 0; i < plan.args.num_levels; ++i) {
      columns[i] = plan.source[i] < 0 ? take(plan.lane_bins() * plan.padded) : nullptr;
      histograms[i] = take(plan.args.bins * plan.pitch(i));
    }
  }

  float* pixel_row(int64_t y) const { return pixels + (y - first_row + 1) * pitch + kLane; }
};

// A strip of one channel.
struct Unit {
  int64_t image, channel, first_row;
};

// Rows are reflected at the border without repeating it, like columns. Vectorized by itself: the type of the pixels
// matters nowhere else.
template <typename T>
void load_band(const Hog& args, const Unit& unit, int64_t rows, Scratch& scratch, Simd simd) {
  const T* plane =
      static_cast<const T*>(args.pixels) + unit.image * args.image_stride + unit.channel * args.channel_stride;
  vectorized(simd, [&](auto set) BIMKERN_INLINE {
    for (int64_t y = scratch.first_row - 1; y <= scratch.first_row + rows; ++y) {
      const int64_t mirrored = y < 0 ? -y : y < args.height ? y : 2 * args.height - 2 - y;
      load_row(set, plane + mirrored * args.row_stride, args.column_stride, args.width, scratch.pixel_row(y));
    }
  });
}

using LoadBand = void (*)(const Hog&, const Unit&, int64_t rows, Scratch&, Simd);

// Adds rows of pixels from y on to the histograms of the columns of a level that starts from pixels.
using AddRows = void (*)(const Plan&, int32_t level, int64_t y, Scratch&, Simd);

template <int kQuads>
void add_row(const Plan& plan, int32_t i, int64_t y, Scratch& scratch, Simd simd) {
  vectorized(simd, [&](auto) BIMKERN_INLINE {
    gradient_row(scratch.pixel_row(y - 1), scratch.pixel_row(y), scratch.pixel_row(y + 1), plan.padded, scratch.gx,
                 scratch.gy);
    orient_row<kQuads>(scratch.gx, scratch.gy, plan.boundaries, plan.args.level[i], plan.weights_of_row(y), plan.padded,
                       scratch.magnitude, scratch.position.data());
    add_magnitudes(scratch.magnitude, scratch.position.data(), plan.args.width, scratch.columns[i]);
  });
}

template <int kRows, int kBins>
void add_rows(const Plan& plan, int32_t i, int64_t y, Scratch& scratch, Simd simd) {
  if (simd != Simd::kAvx512) {
    for (int k = 0; k < kRows; ++k) {
      add_row<kBins == 9 ? 1 : 2>(plan, i, y + k, scratch, simd);
    }
    return;
  }
  const float* weights[kRows];
  for (int k = 0; k < kRows; ++k) {
    weights[k] = plan.weights_of_row(y + k);
  }
  vectorized(simd, [&](auto set) BIMKERN_INLINE {
    describe_columns<kRows, kBins>(set, scratch.pixel_row(y), scratch.pitch, weights, plan.padded, plan.args.level[i],
                                   plan.slopes, scratch.columns[i]);
  });
}

// How a level that starts from pixels takes them.
struct Root {
  int32_t level;
  int64_t rows;  // at once
  AddRows add;
};

template <int kBins>
AddRows rows_at_once(int64_t rows) {
  return rows == 8 ? add_rows<8, kBins> : rows == 4 ? add_rows<4, kBins> : rows == 2 ? add_rows<2, kBins> : add_rows<1, kBins>;
}

Root root_of(const Hog& args, int32_t i) {
  const int64_t rows = std::gcd(args.level[i].cell, kBand);
  if (args.bins <= kMaxLaneBins) {
    return {i, rows, args.bins <= 9 ? rows_at_once<9>(rows) : rows_at_once<kMaxLaneBins>(rows)};
  }
  return {i, 1, add_row<5>};
}

template <typename T, typename Set>
BIMKERN_INLINE inline void write_cells(Set set, const Plan& plan, int32_t i, const Unit& unit, int64_t cell_row,
                                       Scratch& scratch) {
  const Hog& args = plan.args;
  const HogLevel& level = args.level[i];
  const int64_t cells = plan.cells(i);
  const int64_t area = level.group * level.group;
  const int64_t group_row = (unit.image * (args.height / level.cell) + cell_row) / level.group * level.group;
  const int32_t* __restrict offset = plan.offset_of_cell.data() + i * plan.padded;
  T* out = static_cast<T*>(level.out) + group_row * cells * args.channels * args.bins +
           unit.channel * args.bins * area + cell_row % level.group * level.group;
  for (int64_t b = 0; b < args.bins; ++b) {
    const float* histogram = scratch.histograms[i] + b * plan.pitch(i);
    for (int64_t x = 0; x < cells; ++x) {
      scratch.row[x] = histogram[x] * scratch.inverse_norms[x];
    }
    const T* row = reinterpret_cast<const T*>(scratch.row);
    if constexpr (!std::is_same_v<T, float>) {
      T* narrow = reinterpret_cast<T*>(scratch.row + plan.padded);
      store_row(set, scratch.row, cells, narrow);
      row = narrow;
    }
    T* __restrict to = out + b * area;
    for (int64_t x = 0; x < cells; ++x) {
      to[offset[x]] = row[x];
    }
  }
}

// A row of cells is complete: hands it on to coarser cells, writes it and leaves zeros for the next.
void finish_cells(const Plan& plan, int32_t i, const Unit& unit, int64_t cell_row, Scratch& scratch, Simd simd) {
  const Hog& args = plan.args;
  vectorized(simd, [&](auto set) BIMKERN_INLINE {
    float* histograms = scratch.histograms[i];
    if (plan.source[i] < 0) {
      for (int64_t b = 0; b < args.bins; ++b) {
        add_neighbors(scratch.columns[i] + b * plan.padded, plan.cells(i), args.level[i].cell, scratch.row, plan.padded,
                      histograms + b * plan.pitch(i));
      }
      std::fill_n(scratch.columns[i], plan.lane_bins() * plan.padded, 0.0f);
    }
    for (int32_t j = i + 1; j < args.num_levels; ++j) {
      for (int64_t b = 0; plan.source[j] == i && b < args.bins; ++b) {
        add_neighbors(histograms + b * plan.pitch(i), plan.cells(j), args.level[j].cell / args.level[i].cell,
                      scratch.row, plan.padded, scratch.histograms[j] + b * plan.pitch(j));
      }
    }
    if (args.level[i].out != nullptr) {
      invert_norms(histograms, plan.cells(i), args.bins, plan.pitch(i), scratch.inverse_norms);
      if (args.out_dtype == DType::kBFloat16) {
        write_cells<bfloat16>(set, plan, i, unit, cell_row, scratch);
      } else {
        write_cells<float>(set, plan, i, unit, cell_row, scratch);
      }
    }
    std::fill_n(histograms, args.bins * plan.pitch(i), 0.0f);
  });
}

void describe_strip(const Plan& plan, const std::vector<Root>& roots, LoadBand load, const Unit& unit, Scratch& scratch,
                    Simd simd) {
  const Hog& args = plan.args;
  const int64_t end = unit.first_row + plan.strip;
  for (int64_t first = unit.first_row; first < end; first += kBand) {
    const int64_t rows = std::min(kBand, end - first);
    scratch.first_row = first;
    load(args, unit, rows, scratch, simd);
    for (const Root& root : roots) {
      for (int64_t y = first; y < first + rows; y += root.rows) {
        root.add(plan, root.level, y, scratch, simd);
        const int64_t next = y + root.rows;
        for (int32_t i = root.level; i < args.num_levels; ++i) {
          const int64_t cell = args.level[i].cell;
          if (plan.root[i] == root.level && next % cell == 0) {
            finish_cells(plan, i, unit, next / cell - 1, scratch, simd);
          }
        }
      }
    }
  }
}

}  // namespace

void hog(const Hog& args, const Parallel& parallel, Simd simd) {
  if (args.images == 0 || args.channels == 0) {
    return;
  }
  const Plan plan(args);
  std::vector<Root> roots;
  for (int32_t i = 0; i < args.num_levels; ++i) {
    if (plan.source[i] < 0) {
      roots.push_back(root_of(args, i));
    }
  }
  LoadBand load = nullptr;
  dispatch_hog_pixels(args.dtype, [&](auto type) { load = load_band<decltype(type)>; });
  const int64_t strips = args.height / plan.strip;
  const int64_t bytes = plan.strip * args.width * static_cast<int64_t>(sizeof(float));
  parallel(args.images * strips * args.channels, grain_rows(bytes), [&](int64_t begin, int64_t end) {
    Scratch scratch(plan);
    for (int64_t at = begin; at < end; ++at) {
      const int64_t strip = at / args.channels;
      describe_strip(plan, roots, load, {strip / strips, at % args.channels, strip % strips * plan.strip}, scratch, simd);
    }
  });
}

}  // namespace bimkern
