// CUDA kernel of hog.h: reads the image once and writes every histogram once.
//
// A block takes squares as large as the coarsest cell, all channels: 32 x 32 pixels for cells of 4, 8, 16, 32. A thread
// owns a smaller square (4 x 4) of one channel and its histogram in shared memory, so nothing is added atomically and
// no sum depends on timing. Then the block adds fine histograms up to coarse ones, and a warp writes a cell's vectors,
// which lie next to each other. Squares of a block form a strip, one behind the other, and so do their cells in shared
// memory. Cells and channels are an odd number of words apart, so that threads that go through them in step meet
// different banks.
//
// Packed: a thread walks down its square with three rows of pixels in registers; rows come as one load of four pixels a
// thread, whole lines a warp, and the pixels beside them from the lanes beside it. Staged, where squares are no
// multiple of four pixels wide or pixels do not lie so: the block first copies its pixels to shared memory, lanes side
// by side.
//
// Cell sizes that no finer one divides, of another bias, or too large for shared memory get a launch of their own.
#include "ops/hog_cells_cuda.h"
#include "ops/hog_plan.h"

namespace bimkern {
namespace {

constexpr int kPackedBlocksPerSM = 4;  // at least: caps the registers
constexpr int kStagedBlocksPerSM = 3;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMaxBlocksX = 0x7fffffff;
constexpr int64_t kMaxBlocksY = 0xffff;

// Reflected at the border without repeating it; at is -1 to count.
__device__ __forceinline__ int mirrored(int at, int count) { return at < 0 ? 1 : at < count ? at : count - 2; }

// Where a thread is: its plane, and whether the lanes beside it are left and right of it in the same row.
template <typename T>
struct Position {
  const T* plane;
  bool has_left, has_right;
};

// Pixels x - 1 to x + kHogColumns of a row. Called by whole warps.
template <typename T>
__device__ __forceinline__ void load_row(const Hog& args, const Position<T>& position, int y, int x, float* row) {
  const T* from = position.plane + mirrored(y, static_cast<int>(args.height)) * args.row_stride;
  const auto pack = *reinterpret_cast<const Pack<T, kHogColumns>*>(from + x);
#pragma unroll
  for (int i = 0; i < kHogColumns; ++i) {
    row[1 + i] = pixel(pack.value[i]);
  }
  const float left = __shfl_up_sync(kAllLanes, row[kHogColumns], 1);
  const float right = __shfl_down_sync(kAllLanes, row[1], 1);
  row[0] = x == 0 ? row[2] : position.has_left ? left : pixel(from[x - 1]);
  row[1 + kHogColumns] = x + kHogColumns == args.width ? row[kHogColumns - 1]
                         : position.has_right          ? right
                                                       : pixel(from[x + kHogColumns]);
}

// Adds the pixel in the middle of 3 x 3 to a histogram, or to none.
template <int kQuads>
__device__ __forceinline__ void add_pixel(const HogLaunch& launch, const float* above, const float* here,
                                          const float* below, int y, int x, float* histogram) {
  const Hog& args = launch.args;
  // Differences first, then sums: what is equal on both sides leaves an exact zero.
  const float middle_x = here[0] - here[2];
  const float middle_y = above[1] - below[1];
  const float gx = (above[0] - above[2]) + (below[0] - below[2]) + (middle_x + middle_x);
  const float gy = (above[0] - below[0]) + (above[2] - below[2]) + (middle_y + middle_y);
  const float biased_x = gx + args.level[0].bias_x;
  const float biased_y = gy + args.level[0].bias_y;
  float magnitude = hog_magnitude(biased_x, biased_y);
  if (args.window > 0) {
    magnitude = __fmul_rn(magnitude, launch.weights[y % args.window] * launch.weights[x % args.window]);
  }
  if (histogram != nullptr) {
    histogram[hog_bin<kQuads>(biased_x, biased_y, launch.boundaries)] += magnitude;
  }
}

// Adds kHogColumns columns and unit rows to a histogram. Called by whole warps; null: nothing is added.
template <typename T, int kQuads>
__device__ __forceinline__ void add_columns(const HogLaunch& launch, const Position<T>& position, int top, int x,
                                            float* histogram) {
  float above[kHogColumns + 2];
  float here[kHogColumns + 2];
  load_row(launch.args, position, top - 1, x, above);
  load_row(launch.args, position, top, x, here);
  for (int y = top; y < top + launch.unit; ++y) {
    float below[kHogColumns + 2];
    load_row(launch.args, position, y + 1, x, below);
#pragma unroll
    for (int i = 0; i < kHogColumns; ++i) {
      add_pixel<kQuads>(launch, above + i, here + i, below + i, y, x + i, histogram);
    }
#pragma unroll
    for (int i = 0; i < kHogColumns + 2; ++i) {
      above[i] = here[i];
      here[i] = below[i];
    }
  }
}

// The small square of a thread in the strip of its block.
struct Unit {
  int row, column, channel;

  __device__ Unit(int i, int columns, int across)
      : row(i / columns % across), column(i % columns), channel(i / columns / across) {}

  __device__ float* histogram(const HogLaunch& launch, int columns, float* shared) const {
    return shared + (row * columns + column) * launch.cell_spread + channel * launch.spread;
  }
};

template <typename T, int kQuads>
__device__ __forceinline__ void add_packed(const HogLaunch& launch, const HogStrip& strip, float* shared) {
  const Hog& args = launch.args;
  const int across = launch.side / launch.unit;
  const int columns = strip.squares * across;
  const int count = columns * across * strip.channels;
  const bool beside = launch.unit == kHogColumns;
  for (int begin = 0; begin < count; begin += blockDim.x) {
    const bool active = begin + static_cast<int>(threadIdx.x) < count;
    const Unit unit(active ? begin + threadIdx.x : count - 1, columns, across);  // a warp stays whole
    const int lane = threadIdx.x % kWarp;
    const HogSquare at = hog_square(launch, strip.first_square + unit.column / across);
    const T* plane = static_cast<const T*>(args.pixels) + at.image * args.image_stride +
                     (strip.first_channel + unit.channel) * args.channel_stride;
    const Position<T> own{plane, beside && lane > 0 && unit.column > 0,
                          beside && lane < kWarp - 1 && unit.column < columns - 1};
    const int top = static_cast<int>(at.row * launch.side) + unit.row * launch.unit;
    const int left = static_cast<int>(at.column * launch.side) + unit.column % across * launch.unit;
    float* histogram = active ? unit.histogram(launch, columns, shared) : nullptr;
    for (int b = 0; b < args.bins && active; ++b) {
      histogram[b] = 0;
    }
    for (int x = 0; x < launch.unit; x += kHogColumns) {
      add_columns<T, kQuads>(launch, own, top, left + x, histogram);
    }
  }
  __syncthreads();
}

// Where a tile that begins with column left of its strip has another column.
__device__ __forceinline__ int tile_column(const HogLaunch& launch, int left, int column) {
  return launch.padded(column) - launch.padded(left) + 2;
}

// Copies the pixels of a tile and those around it. A thread copies columns, and finds only once where each lies. Warps
// begin at multiples of 32 pixels, where sectors do; the column in front of the tile comes last.
template <typename T>
__device__ __forceinline__ void stage(const HogLaunch& launch, const HogStrip& strip, int top, int left, float* tile) {
  const Hog& args = launch.args;
  const int end = strip.squares * launch.side;
  const int columns = min(launch.tile.columns, end - left);
  const int rows = min(launch.tile.rows, launch.side - top) + 2;
  const HogSquare first = hog_square(launch, strip.first_square + left / launch.side);
  const int skipped = static_cast<int>(first.column * launch.side + left % launch.side) % kWarp;
  for (int i = static_cast<int>(threadIdx.x) - skipped; i < columns + 2; i += blockDim.x) {
    if (i < 0) {
      continue;
    }
    const int column = i <= columns ? left + i : left - 1;
    const int square = min(max(column, 0), end - 1) / launch.side;
    const HogSquare at = hog_square(launch, strip.first_square + square);
    const int x = static_cast<int>(at.column * launch.side) + column - square * launch.side;
    if (x < 0 || x >= args.width) {
      continue;  // add_tile mirrors
    }
    const T* from = static_cast<const T*>(args.pixels) + at.image * args.image_stride +
                    strip.first_channel * args.channel_stride + x * args.column_stride;
    const int first_y = static_cast<int>(at.row * launch.side) + top - 1;
    float* to = tile + tile_column(launch, left, column);
    for (int channel = 0; channel < strip.channels; ++channel) {
#pragma unroll 4
      for (int row = 0; row < rows; ++row) {
        to[row * launch.tile.pitch] =
            pixel(from[mirrored(first_y + row, static_cast<int>(args.height)) * args.row_stride]);
      }
      from += args.channel_stride;
      to += (launch.tile.rows + 2) * launch.tile.pitch;
    }
  }
}

// Adds what a tile holds of each small square.
template <int kQuads>
__device__ __forceinline__ void add_tile(const HogLaunch& launch, const HogStrip& strip, int top, int left,
                                         const float* tile, float* shared) {
  const int across = launch.side / launch.unit;
  const int columns = strip.squares * across;
  for (int i = threadIdx.x; i < columns * across * strip.channels; i += blockDim.x) {
    const Unit unit(i, columns, across);
    const int first_y = max(unit.row * launch.unit, top);
    const int last_y = min((unit.row + 1) * launch.unit, top + launch.tile.rows) - 1;
    const int first = max(unit.column * launch.unit, left);
    const int last = min((unit.column + 1) * launch.unit, left + launch.tile.columns) - 1;
    if (first > last) {
      continue;
    }
    const HogSquare at = hog_square(launch, strip.first_square + unit.column / across);
    const int y = static_cast<int>(at.row * launch.side);
    const int x = static_cast<int>(at.column * launch.side) + first - unit.column / across * launch.side;
    const int begin = tile_column(launch, left, first);
    const int before = tile_column(launch, left, x == 0 ? first + 1 : first - 1);
    const int behind = tile_column(launch, left, x + last - first == launch.args.width - 1 ? last - 1 : last + 1);
    float* histogram = unit.histogram(launch, columns, shared);
    for (int row = first_y; row <= last_y; ++row) {
      const float* rows[3];
      float pixels[3][3];
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        rows[j] = tile + (unit.channel * (launch.tile.rows + 2) + row - top + j) * launch.tile.pitch;
        pixels[j][0] = rows[j][before];
        pixels[j][1] = rows[j][begin];
      }
      for (int column = 0; column <= last - first; ++column) {
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          pixels[j][2] = rows[j][column == last - first ? behind : begin + column + 1];
        }
        add_pixel<kQuads>(launch, pixels[0], pixels[1], pixels[2], y + row, x + column, histogram);
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          pixels[j][0] = pixels[j][1];
          pixels[j][1] = pixels[j][2];
        }
      }
    }
  }
}

template <typename T, int kQuads>
__device__ __forceinline__ void add_staged(const HogLaunch& launch, const HogStrip& strip, float* shared) {
  const int across = launch.side / launch.unit;
  const int columns = strip.squares * across;
  for (int i = threadIdx.x; i < columns * across * strip.channels; i += blockDim.x) {
    float* histogram = Unit(i, columns, across).histogram(launch, columns, shared);
    for (int b = 0; b < launch.args.bins; ++b) {
      histogram[b] = 0;
    }
  }
  float* tile = shared + launch.cells * launch.cell_spread;
  for (int top = 0; top < launch.side; top += launch.tile.rows) {
    for (int left = 0; left < strip.squares * launch.side; left += launch.tile.columns) {
      stage<T>(launch, strip, top, left, tile);
      __syncthreads();
      add_tile<kQuads>(launch, strip, top, left, tile, shared);
      __syncthreads();
    }
  }
}

template <typename T, int kQuads, bool kPacked>
__global__ void __launch_bounds__(kHogMaxThreads, kPacked ? kPackedBlocksPerSM : kStagedBlocksPerSM)
    hog_kernel(const __grid_constant__ HogLaunch launch) {
  extern __shared__ float shared[];
  const Hog& args = launch.args;
  const int64_t all_squares = args.images * (args.height / launch.side) * (args.width / launch.side);
  HogStrip strip;
  strip.first_square = static_cast<int64_t>(blockIdx.x) * launch.squares;
  strip.squares = static_cast<int>(min(static_cast<int64_t>(launch.squares), all_squares - strip.first_square));
  strip.first_channel = blockIdx.y * launch.channels;
  strip.channels = min(launch.channels, static_cast<int>(args.channels) - strip.first_channel);

  if constexpr (kPacked) {
    add_packed<T, kQuads>(launch, strip, shared);
  } else {
    add_staged<T, kQuads>(launch, strip, shared);
  }
  for (int i = launch.first[0] == 0 ? 1 : 0; i < args.num_levels; ++i) {
    const int from = i == 0 ? 0 : launch.first[launch.source[i]];
    const int fine_across = i == 0 ? launch.side / launch.unit : launch.across(launch.source[i]);
    add_hog_cells(launch, shared + from * launch.cell_spread, fine_across,
                  shared + launch.first[i] * launch.cell_spread, launch.across(i), strip);
    __syncthreads();
  }
  for (int i = 0; i < args.num_levels; ++i) {
    add_hog_norms(launch, shared + launch.first[i] * launch.cell_spread,
                  strip.squares * launch.across(i) * launch.across(i), strip.channels);
  }
  __syncthreads();
  for (int square = 0; square < strip.squares; ++square) {
    const HogSquare at = hog_square(launch, strip.first_square + square);
    for (int i = 0; i < args.num_levels; ++i) {
      const int across = launch.across(i);
      const float* histograms = shared + (launch.first[i] + square * across) * launch.cell_spread;
      if (args.out_dtype == DType::kBFloat16) {
        write_hog_cells<bfloat16>(launch, i, at, histograms, strip.squares * across, strip);
      } else {
        write_hog_cells<float>(launch, i, at, histograms, strip.squares * across, strip);
      }
    }
  }
}

template <typename T>
void run(const HogLaunch& launch, cudaStream_t stream) {
  const Hog& args = launch.args;
  const int64_t all_squares = args.images * (args.height / launch.side) * (args.width / launch.side);
  const int64_t blocks = ceil_div<int64_t>(all_squares, launch.squares);
  const int64_t parts = ceil_div<int64_t>(args.channels, launch.channels);
  BIMKERN_CHECK(blocks <= kMaxBlocksX && parts <= kMaxBlocksY, "hog: at most ", kMaxBlocksX, " squares of ",
                launch.side, " pixels and ", kMaxBlocksY, " parts of the channels fit a launch, got ", blocks, " and ",
                parts);
  const int64_t units = int64_t{launch.side / launch.unit} * (launch.side / launch.unit) * launch.channels;
  const int64_t turns = ceil_div<int64_t>(units * launch.squares, kHogMaxThreads);
  const int64_t threads = ceil_div<int64_t>(ceil_div(units * launch.squares, turns), kWarp) * kWarp;
  const auto bytes = static_cast<size_t>(launch.words()) * sizeof(float);
  dispatch_quads(args.bins, [&](auto quads) {
    constexpr int kQuads = decltype(quads)::value;
    const auto kernel = launch.packed ? hog_kernel<T, kQuads, true> : hog_kernel<T, kQuads, false>;
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(parts));
    kernel<<<grid, static_cast<unsigned>(threads), bytes, stream>>>(launch);
    check_launch("hog");
  });
}

}  // namespace

void hog_cuda(const Hog& args, void* stream) {
  if (args.images == 0 || args.channels == 0) {
    return;
  }
  bool done[kMaxHogLevels] = {};
  for (int32_t first = 0; first < args.num_levels; ++first) {
    if (done[first]) {
      continue;
    }
    HogLaunch launch{};
    launch.args = args;
    launch.args.num_levels = 0;
    launch.boundaries = hog_boundaries(args.bins);
    if (args.window > 0) {
      hog_window(args.window, launch.weights);
    }
    for (int32_t i = first; i < args.num_levels; ++i) {
      if (done[i]) {
        continue;
      }
      HogLaunch longer = launch;
      longer.args.level[longer.args.num_levels++] = args.level[i];
      const bool is_sum = i == first || hog_source(longer.args, longer.args.num_levels - 1) >= 0;
      if (is_sum && plan_hog(longer)) {
        launch = longer;
        done[i] = true;
      }
    }
    dispatch_hog_pixels(args.dtype, [&](auto type) { run<decltype(type)>(launch, static_cast<cudaStream_t>(stream)); });
  }
}

}  // namespace bimkern
