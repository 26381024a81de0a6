// Histograms in shared memory, from the finest to what hog returns: sums of finer ones, norms, the vectors of a cell.
#pragma once

#include "ops/hog_plan.h"

namespace bimkern {

struct HogSquare {
  int64_t image, row, column;  // the last two counted in squares
};

// What a block has: squares one behind the other, some channels of them.
struct HogStrip {
  int64_t first_square;
  int squares, first_channel, channels;
};

__device__ __forceinline__ HogSquare hog_square(const HogLaunch& launch, int64_t index) {
  const int64_t across = launch.args.width / launch.side;
  const int64_t down = launch.args.height / launch.side;
  return HogSquare{index / (across * down), index / across % down, index % across};
}

// Histograms of cells, each the sum of factor x factor finer ones. A thread per bin.
__device__ __forceinline__ void add_hog_cells(const HogLaunch& launch, const float* fine, int fine_across,
                                              float* coarse, int across, const HogStrip& strip) {
  const int factor = fine_across / across;
  const int columns = strip.squares * across;
  const int bins = launch.args.bins;
  for (int i = threadIdx.x; i < columns * across * strip.channels * bins; i += blockDim.x) {
    const int bin = i % bins;
    const int channel = i / bins % strip.channels;
    const int cell = i / bins / strip.channels;
    const int column = cell % columns;
    const int row = cell / columns;
    const int position = channel * launch.spread + bin;
    float sum = 0;
    for (int y = row * factor; y < (row + 1) * factor; ++y) {
      float row_sum = 0;  // long sums round less in two steps
      for (int x = column * factor; x < (column + 1) * factor; ++x) {
        row_sum += fine[(y * columns * factor + x) * launch.cell_spread + position];
      }
      sum += row_sum;
    }
    coarse[cell * launch.cell_spread + position] = sum;
  }
}

// Puts the inverse norm behind every histogram of a level.
__device__ __forceinline__ void add_hog_norms(const HogLaunch& launch, float* histograms, int cells, int channels) {
  const int bins = launch.args.bins;
  for (int i = threadIdx.x; i < cells * channels; i += blockDim.x) {
    float* histogram = histograms + i / channels * launch.cell_spread + i % channels * launch.spread;
    float sum = 0;
    for (int b = 0; b < bins; ++b) {
      sum += histogram[b] * histogram[b];
    }
    const float norm = sqrtf(sum);
    histogram[bins] = 1.0f / (norm < kHogEps ? kHogEps : norm);  // this way round NaN stays NaN
  }
}

// Writes the cells of one level in one square, whose histograms begin where the first of them does, in a strip with so
// many columns. A warp per cell.
template <typename Out>
__device__ __forceinline__ void write_hog_cells(const HogLaunch& launch, int32_t i, const HogSquare& at,
                                                const float* histograms, int columns, const HogStrip& strip) {
  const Hog& args = launch.args;
  const HogLevel& level = args.level[i];
  const int across = launch.across(i);
  const int image_across = static_cast<int>(args.width / level.cell);
  const int image_down = static_cast<int>(args.height / level.cell);
  const int vector = static_cast<int>(args.channels) * args.bins;
  const int group = static_cast<int>(level.group);
  const float inverse_across = 1.0f / across;
  Out* out = static_cast<Out*>(level.out) + at.image * image_down * image_across * vector;
  for (int element = threadIdx.x % kWarp; element < strip.channels * args.bins; element += kWarp) {
    const int channel = element / args.bins;
    const int position = channel * launch.spread + element - channel * args.bins;
    const int norm = channel * launch.spread + args.bins;
    const int index = strip.first_channel * args.bins + element;
    for (int cell = threadIdx.x / kWarp; cell < across * across; cell += blockDim.x / kWarp) {
      const int row_here = static_cast<int>((cell + 0.5f) * inverse_across);
      const int row = static_cast<int>(at.row) * across + row_here;
      const int column_here = cell - row_here * across;
      const int column = static_cast<int>(at.column) * across + column_here;
      const float* histogram = histograms + (row_here * columns + column_here) * launch.cell_spread;
      const float value = histogram[position] * histogram[norm];
      if (group == 1) {
        out[(row * image_across + column) * vector + index] = Arithmetic<Out>::store(value);
      } else {
        const int first_cell = row / group * group * image_across + column / group * group * group;
        const int inside = row % group * group + column % group;
        out[first_cell * vector + index * group * group + inside] = Arithmetic<Out>::store(value);
      }
    }
  }
}

}  // namespace bimkern
