// CUDA kernel of hog.h: reads the image once and writes every histogram once.
//
// A block takes squares as large as the coarsest cell, all channels: 32 x 32 pixels for cells of 4, 8, 16, 32. A thread
// owns a smaller square (4 x 4) of one channel and its histogram in shared memory, so nothing is added atomically and
// no sum depends on timing. It walks down its square with three rows of pixels in registers; rows come as one load of
// four pixels a thread, whole lines a warp, and the pixels beside them from the lanes beside it. Then the block adds
// fine histograms up to coarse ones, and a warp writes a cell's vectors, which lie next to each other. Squares of a
// block form a strip, one behind the other, and so do their cells in shared memory. Cells and channels are an odd
// number of words apart, so that threads that go through them in step meet different banks.
//
// Cell sizes that no finer one divides, of another bias, or too large for shared memory get a launch of their own.
#include <algorithm>
#include <numeric>

#include "core/cuda.h"
#include "ops/hog.h"

namespace bimkern {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kMaxTurns = 2;           // of the threads, to make a block's lines longer
constexpr int kPackedBlocksPerSM = 4;  // at least: caps the registers
constexpr int kBlocksPerSM = 3;        // the same where pixels come one by one
constexpr int kColumns = 4;            // pixels that a thread loads at once
constexpr int kMinUnit = 4;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kSharedBytes = 48 * 1024;  // what every launch may have
constexpr int64_t kMaxBlocksX = 0x7fffffff;
constexpr int64_t kMaxBlocksY = 0xffff;

// One launch: levels that are sums of its first.
struct Launch {
  Hog args;
  HogBoundaries boundaries;
  float weights[kMaxHogWindow];
  int32_t source[kMaxHogLevels];
  int32_t first[kMaxHogLevels];  // cell of each level in shared memory
  int32_t side;                  // pixels of a square, the least common multiple of the cells
  int32_t unit;                  // pixels of the small square of a thread; divides the first cell
  int32_t channels;              // of a block
  int32_t squares;               // of a block
  int32_t spread;                // words of a histogram: bins, the inverse norm, and one more where that is even
  int32_t cell_spread;           // words of the histograms of a cell, and one more where that is even
  int32_t cells;                 // in shared memory

  __host__ __device__ int32_t across(int32_t i) const { return side / static_cast<int32_t>(args.level[i].cell); }
};

struct Square {
  int64_t image, row, column;  // the last two counted in squares
};

__device__ __forceinline__ Square square_at(const Launch& launch, int64_t index) {
  const int64_t across = launch.args.width / launch.side;
  const int64_t down = launch.args.height / launch.side;
  return Square{index / (across * down), index / across % down, index % across};
}

// Reflected at the border without repeating it. What lies further out is never used, but must be readable.
__device__ __forceinline__ int mirrored(int at, int count) {
  const int inside = at < 0 ? -at : at < count ? at : 2 * count - 2 - at;
  return max(inside, 0);
}

// Where a thread is: its plane, and whether the lanes beside it are left and right of it in the same row.
template <typename T>
struct Position {
  const T* plane;
  bool has_left, has_right;
};

// Pixels x - 1 to x + kColumns of a row. Called by whole warps.
template <typename T, bool kPacked>
__device__ __forceinline__ void load_row(const Hog& args, const Position<T>& position, int y, int x, float* row) {
  const int width = static_cast<int>(args.width);
  const T* from = position.plane + mirrored(y, static_cast<int>(args.height)) * args.row_stride;
  if constexpr (kPacked) {
    const auto pack = *reinterpret_cast<const Pack<T, kColumns>*>(from + x);
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      row[1 + i] = pixel(pack.value[i]);
    }
    const float left = __shfl_up_sync(kAllLanes, row[kColumns], 1);
    const float right = __shfl_down_sync(kAllLanes, row[1], 1);
    row[0] = x == 0 ? row[2] : position.has_left ? left : pixel(from[x - 1]);
    row[1 + kColumns] = x + kColumns == width ? row[kColumns - 1]
                        : position.has_right  ? right
                                              : pixel(from[x + kColumns]);
  } else {
#pragma unroll
    for (int i = 0; i < kColumns + 2; ++i) {
      row[i] = pixel(from[mirrored(x - 1 + i, width) * args.column_stride]);
    }
  }
}

// Adds at most kColumns columns and unit rows to a histogram. Called by whole warps; null: nothing is added.
template <typename T, int kQuads, bool kPacked>
__device__ __forceinline__ void add_columns(const Launch& launch, const Position<T>& position, int top, int x,
                                            int columns, float* histogram) {
  const Hog& args = launch.args;
  float above[kColumns + 2];
  float here[kColumns + 2];
  load_row<T, kPacked>(args, position, top - 1, x, above);
  load_row<T, kPacked>(args, position, top, x, here);
  for (int y = top; y < top + launch.unit; ++y) {
    float below[kColumns + 2];
    load_row<T, kPacked>(args, position, y + 1, x, below);
#pragma unroll
    for (int i = 1; i <= kColumns; ++i) {
      // Differences first, then sums: what is equal on both sides leaves an exact zero.
      const float middle_x = here[i - 1] - here[i + 1];
      const float middle_y = above[i] - below[i];
      const float gx = (above[i - 1] - above[i + 1]) + (below[i - 1] - below[i + 1]) + (middle_x + middle_x);
      const float gy = (above[i - 1] - below[i - 1]) + (above[i + 1] - below[i + 1]) + (middle_y + middle_y);
      const float biased_x = gx + args.level[0].bias_x;
      const float biased_y = gy + args.level[0].bias_y;
      float magnitude = hog_magnitude(biased_x, biased_y);
      if (args.window > 0) {
        const float weight = launch.weights[y % args.window] * launch.weights[(x + i - 1) % args.window];
        magnitude = __fmul_rn(magnitude, weight);
      }
      if (histogram != nullptr && (kPacked || i <= columns)) {
        histogram[hog_bin<kQuads>(biased_x, biased_y, launch.boundaries)] += magnitude;
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns + 2; ++i) {
      above[i] = here[i];
      here[i] = below[i];
    }
  }
}

template <typename T, int kQuads, bool kPacked>
__device__ __forceinline__ void add_pixels(const Launch& launch, int64_t first_square, int squares, int first_channel,
                                           int channels, float* shared) {
  const Hog& args = launch.args;
  const int across = launch.side / launch.unit;
  const int columns = squares * across;  // of the strip
  const int count = columns * across * channels;
  const bool beside = launch.unit == kColumns;
  for (int begin = 0; begin < count; begin += blockDim.x) {
    const bool active = begin + static_cast<int>(threadIdx.x) < count;
    const int i = active ? begin + threadIdx.x : count - 1;  // a warp stays whole
    const int column = i % columns;
    const int row = i / columns % across;
    const int channel = i / columns / across;
    const int lane = threadIdx.x % kWarp;
    const Square at = square_at(launch, first_square + column / across);
    const T* plane = static_cast<const T*>(args.pixels) + at.image * args.image_stride +
                     (first_channel + channel) * args.channel_stride;
    const Position<T> own{plane, beside && lane > 0 && column > 0, beside && lane < kWarp - 1 && column < columns - 1};
    const int top = static_cast<int>(at.row * launch.side) + row * launch.unit;
    const int left = static_cast<int>(at.column * launch.side) + column % across * launch.unit;
    float* histogram =
        active ? shared + (row * columns + column) * launch.cell_spread + channel * launch.spread : nullptr;
    for (int b = 0; b < args.bins && active; ++b) {
      histogram[b] = 0;
    }
    for (int x = 0; x < launch.unit; x += kColumns) {
      add_columns<T, kQuads, kPacked>(launch, own, top, left + x, launch.unit - x, histogram);
    }
  }
}

// Histograms of cells, each the sum of factor x factor finer ones. A thread per bin.
__device__ __forceinline__ void add_cells(const Launch& launch, const float* fine, int fine_across, float* coarse,
                                          int across, int squares, int channels) {
  const int factor = fine_across / across;
  const int columns = squares * across;
  const int bins = launch.args.bins;
  for (int i = threadIdx.x; i < columns * across * channels * bins; i += blockDim.x) {
    const int bin = i % bins;
    const int channel = i / bins % channels;
    const int cell = i / bins / channels;
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
__device__ __forceinline__ void add_norms(const Launch& launch, float* histograms, int cells, int channels) {
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
__device__ __forceinline__ void write_cells(const Launch& launch, int32_t i, const Square& at, const float* histograms,
                                            int columns, int first_channel, int channels) {
  const Hog& args = launch.args;
  const HogLevel& level = args.level[i];
  const int across = launch.across(i);
  const int image_across = static_cast<int>(args.width / level.cell);
  const int image_down = static_cast<int>(args.height / level.cell);
  const int vector = static_cast<int>(args.channels) * args.bins;
  const int group = static_cast<int>(level.group);
  const float inverse_across = 1.0f / across;
  Out* out = static_cast<Out*>(level.out) + at.image * image_down * image_across * vector;
  for (int element = threadIdx.x % kWarp; element < channels * args.bins; element += kWarp) {
    const int channel = element / args.bins;
    const int position = channel * launch.spread + element - channel * args.bins;
    const int norm = channel * launch.spread + args.bins;
    const int index = first_channel * args.bins + element;
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

template <typename T, int kQuads, bool kPacked>
__global__ void __launch_bounds__(kMaxThreads, kPacked ? kPackedBlocksPerSM : kBlocksPerSM)
    hog_kernel(const __grid_constant__ Launch launch) {
  extern __shared__ float shared[];
  const Hog& args = launch.args;
  const int64_t all_squares = args.images * (args.height / launch.side) * (args.width / launch.side);
  const int64_t first_square = static_cast<int64_t>(blockIdx.x) * launch.squares;
  const int squares = static_cast<int>(min(static_cast<int64_t>(launch.squares), all_squares - first_square));
  const int first_channel = blockIdx.y * launch.channels;
  const int channels = min(launch.channels, static_cast<int>(args.channels) - first_channel);

  add_pixels<T, kQuads, kPacked>(launch, first_square, squares, first_channel, channels, shared);
  __syncthreads();
  for (int i = launch.first[0] == 0 ? 1 : 0; i < args.num_levels; ++i) {
    const int from = i == 0 ? 0 : launch.first[launch.source[i]];
    const int fine_across = i == 0 ? launch.side / launch.unit : launch.across(launch.source[i]);
    add_cells(launch, shared + from * launch.cell_spread, fine_across, shared + launch.first[i] * launch.cell_spread,
              launch.across(i), squares, channels);
    __syncthreads();
  }
  for (int i = 0; i < args.num_levels; ++i) {
    add_norms(launch, shared + launch.first[i] * launch.cell_spread, squares * launch.across(i) * launch.across(i),
              channels);
  }
  __syncthreads();
  for (int square = 0; square < squares; ++square) {
    const Square at = square_at(launch, first_square + square);
    for (int i = 0; i < args.num_levels; ++i) {
      const int across = launch.across(i);
      const float* histograms = shared + (launch.first[i] + square * across) * launch.cell_spread;
      if (args.out_dtype == DType::kBFloat16) {
        write_cells<bfloat16>(launch, i, at, histograms, squares * across, first_channel, channels);
      } else {
        write_cells<float>(launch, i, at, histograms, squares * across, first_channel, channels);
      }
    }
  }
}

// Cuts the work of a launch into blocks, with the smallest units and the most channels that fit; false: nothing fits.
bool plan(Launch& launch) {
  const Hog& args = launch.args;
  const auto root = static_cast<int32_t>(args.level[0].cell);
  int64_t side = 1;
  for (int32_t i = 0; i < args.num_levels; ++i) {
    side = std::lcm(side, args.level[i].cell);
    launch.source[i] = hog_source(args, i);
  }
  launch.side = static_cast<int32_t>(side);
  launch.spread = (args.bins + 1) | 1;
  const int64_t room = kSharedBytes / static_cast<int64_t>(sizeof(float));  // words
  for (int32_t unit = std::min(root, kMinUnit); unit <= root; ++unit) {
    if (root % unit != 0) {
      continue;
    }
    const int64_t across = side / unit;
    int64_t cells = unit == root ? 0 : across * across;  // of a square
    for (int32_t i = 0; i < args.num_levels; ++i) {
      cells += static_cast<int64_t>(launch.across(i)) * launch.across(i);
    }
    int64_t most_channels = room / cells / launch.spread;
    if (cells * (most_channels * launch.spread | 1) > room) {
      --most_channels;
    }
    if (most_channels < 1) {
      continue;
    }
    const int64_t parts = ceil_div(args.channels, std::min(args.channels, most_channels));
    const int64_t channels = ceil_div(args.channels, parts);
    const int64_t cell_spread = channels * launch.spread | 1;
    const int64_t units = across * across * channels;  // of a square
    int64_t wanted = std::max<int64_t>(1, kMaxThreads / units);
    const int64_t line = kWarp / across;  // squares side by side, as wide as a warp
    if (kWarp % across == 0 && line * units <= kMaxTurns * kMaxThreads) {
      wanted = std::max(line, wanted - wanted % line);  // so warps take whole lines, which begin where sectors do
    }
    const int64_t all_squares = args.images * (args.height / side) * (args.width / side);
    const int64_t squares = std::min({wanted, room / (cells * cell_spread), all_squares});
    launch.unit = unit;
    launch.channels = static_cast<int32_t>(channels);
    launch.squares = static_cast<int32_t>(squares);
    launch.cell_spread = static_cast<int32_t>(cell_spread);
    launch.cells = unit == root ? 0 : static_cast<int32_t>(across * across * squares);
    for (int32_t i = 0; i < args.num_levels; ++i) {
      launch.first[i] = launch.cells;
      launch.cells += static_cast<int32_t>(launch.across(i) * launch.across(i) * squares);
    }
    return true;
  }
  return false;
}

bool is_aligned(const Hog& args, int64_t size) {
  const int64_t bytes = kColumns * size;
  return args.column_stride == 1 && reinterpret_cast<uintptr_t>(args.pixels) % bytes == 0 &&
         args.row_stride % kColumns == 0 && args.channel_stride % kColumns == 0 && args.image_stride % kColumns == 0;
}

template <typename T>
void run(const Launch& launch, cudaStream_t stream) {
  const Hog& args = launch.args;
  const int64_t all_squares = args.images * (args.height / launch.side) * (args.width / launch.side);
  const int64_t blocks = ceil_div<int64_t>(all_squares, launch.squares);
  const int64_t parts = ceil_div<int64_t>(args.channels, launch.channels);
  BIMKERN_CHECK(blocks <= kMaxBlocksX && parts <= kMaxBlocksY, "hog: at most ", kMaxBlocksX, " squares of ",
                launch.side, " pixels and ", kMaxBlocksY, " parts of the channels fit a launch, got ", blocks, " and ",
                parts);
  const int64_t units = int64_t{launch.side / launch.unit} * (launch.side / launch.unit) * launch.channels;
  const int64_t turns = ceil_div<int64_t>(units * launch.squares, kMaxThreads);
  const int64_t threads = ceil_div<int64_t>(ceil_div(units * launch.squares, turns), kWarp) * kWarp;
  const auto bytes = static_cast<size_t>(launch.cells) * launch.cell_spread * sizeof(float);
  const bool packed = launch.unit % kColumns == 0 && is_aligned(args, sizeof(T));
  dispatch_quads(args.bins, [&](auto quads) {
    constexpr int kQuads = decltype(quads)::value;
    const auto kernel = packed ? hog_kernel<T, kQuads, true> : hog_kernel<T, kQuads, false>;
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
    Launch launch{};
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
      Launch longer = launch;
      longer.args.level[longer.args.num_levels++] = args.level[i];
      const bool is_sum = i == first || hog_source(longer.args, longer.args.num_levels - 1) >= 0;
      if (is_sum && plan(longer)) {
        launch = longer;
        done[i] = true;
      }
    }
    dispatch_hog_pixels(args.dtype, [&](auto type) { run<decltype(type)>(launch, static_cast<cudaStream_t>(stream)); });
  }
}

}  // namespace bimkern
