// CPU kernels of match_linear.h, parallel over tiles of cells, or over slabs of them where weights get a gradient.
#include "ops/match_linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/lane_product.h"
#include "core/rows.h"
#include "ops/match_predict.h"
#include "ops/match_squares.h"

namespace bimkern {
namespace {

// Values from the start of a line of a cache on: a register that crosses lines is loaded twice.
class Floats {
 public:
  explicit Floats(int64_t count) : values_(count + kLine) {}
  float* data() {
    const auto at = reinterpret_cast<uintptr_t>(values_.data()) / sizeof(float);
    return values_.data() + (kLine - at % kLine) % kLine;
  }

 private:
  static constexpr int64_t kLine = 16;
  std::vector<float> values_;
};

// Rows of a tile are an odd number of lines apart, or they compete for few places of a cache.
int64_t tile_stride(int64_t width) { return padded(width) + (padded(width) / kPadded % 2 == 0 ? kPadded : 0); }

// weight [P, D] as a right factor: [D, padded(P)].
void pack_transposed(const MatchLayer& layer, float* to) {
  const int64_t length = layer.grid.length, width = layer.grid.width;
  for (int64_t p = 0; p < length; ++p) {
    for (int64_t d = 0; d < width; ++d) {
      to[d * padded(length) + p] = layer.weight[p * width + d];
    }
  }
}

// row = a cell of all B * M; what is beyond width stays.
template <typename Set>
BIMKERN_INLINE inline void load_cell(Set set, const MatchLayer& layer, int64_t cell, float* row) {
  const MatchGrid& grid = layer.grid;
  const int64_t image = cell / grid.cells(), token = cell % grid.cells();
  const int64_t first =
      image * layer.image_stride + (grid.side == 1 ? token : corner_of(token, grid.columns)) * layer.token_stride;
  visit_row<float>(layer.dtype, layer.tokens, first, [&](const auto* from) BIMKERN_INLINE {
    if (grid.side == 1) {
      load_row(set, from, grid.width, row);
    } else {
      mean_of_square(set, from, layer.token_stride, grid.columns * layer.token_stride, grid.width, row);
    }
  });
}

// The share of a cell in the loss, without denominator.
float weight_of(const MatchLinearLoss& args, int64_t cell) {
  const MatchGrid& grid = args.layer.grid;
  const int64_t token = cell % grid.cells(), stride = args.mask_token_stride;
  const float* mask = args.mask + cell / grid.cells() * args.mask_image_stride;
  if (grid.side == 1) {
    return mask[token * stride];
  }
  const float* first = mask + corner_of(token, grid.columns) * stride;
  return (first[0] + first[stride] + first[grid.columns * stride] + first[(grid.columns + 1) * stride]) * 0.25f;
}

// Cells that count, waiting to be multiplied, and what a slab of them adds up to.
struct Tile {
  const int64_t stride;
  Floats rows;  // [kMatchTile, stride]
  Floats pred;  // [kMatchTile, P]
  std::vector<int64_t> cells;
  std::vector<float> weights;
  std::vector<double> grad_bias;
  double loss = 0;
  int64_t count = 0;

  explicit Tile(const MatchGrid& grid)
      : stride(tile_stride(grid.width)),
        rows(kMatchTile * stride),
        pred(kMatchTile * grid.length),
        cells(kMatchTile),
        weights(kMatchTile),
        grad_bias(grid.length) {}
};

// row: a prediction, becomes its gradient times the denominator; returns the weighted sum of errors.
BIMKERN_INLINE inline double error_of(LossKind kind, float weight, float slope, const float* __restrict target,
                                      int64_t length, float* __restrict row) {
  for (int64_t p = 0; p < length; ++p) {
    row[p] -= target[p];
  }
  if (kind == LossKind::kL2) {
    const float sum = lane_sum<float>(length, [=](int64_t p) BIMKERN_INLINE { return row[p] * row[p]; });
    for (int64_t p = 0; p < length; ++p) {
      row[p] *= slope;
    }
    return static_cast<double>(weight) * sum;
  }
  const float sum = lane_sum<float>(length, [=](int64_t p) BIMKERN_INLINE { return std::abs(row[p]); });
  for (int64_t p = 0; p < length; ++p) {
    row[p] = slope * (static_cast<float>(row[p] > 0) - static_cast<float>(row[p] < 0));
  }
  return static_cast<double>(weight) * sum;
}

// Multiplies the cells of a tile, takes their errors, and adds their gradients to those of the slab. scale: that of a
// weight in the derivative.
template <typename Set>
BIMKERN_INLINE inline void flush(Set set, const MatchLinearLoss& args, const float* packed, float scale,
                                 float* grad_weight, bool first, Tile& tile) {
  const MatchGrid& grid = args.layer.grid;
  const int64_t length = grid.length, width = grid.width;
  float* pred = tile.pred.data();
  multiply(set, LaneProduct{tile.count, length, width, tile.rows.data(), tile.stride, 1, packed, padded(length),
                            args.layer.bias, 0, pred, length});
  for (int64_t i = 0; i < tile.count; ++i) {
    const int64_t cell = tile.cells[i];
    const float* target =
        args.target + cell / grid.cells() * args.target_image_stride + cell % grid.cells() * args.target_cell_stride;
    float* row = pred + i * length;
    tile.loss += error_of(args.kind, tile.weights[i], tile.weights[i] * scale, target, length, row);
    if (args.grad_out != nullptr) {
      std::memcpy(args.grad_out + cell * length, row, length * sizeof(float));
      for (int64_t p = 0; p < length; ++p) {
        tile.grad_bias[p] += row[p];
      }
    }
  }
  if (args.grad_out != nullptr) {
    multiply(set, LaneProduct{length, width, tile.count, pred, 1, length, tile.rows.data(), tile.stride,
                              first ? nullptr : grad_weight, width, grad_weight, width});
  }
  tile.count = 0;
}

// The cells of a slab.
template <typename Set>
BIMKERN_INLINE inline void add_slab(Set set, const MatchLinearLoss& args, const float* packed, float scale,
                                    int64_t begin, int64_t end, float* grad_weight, Tile& tile) {
  const int64_t length = args.layer.grid.length;
  bool first = true;
  tile.loss = 0;
  std::fill(tile.grad_bias.begin(), tile.grad_bias.end(), 0.0);
  for (int64_t cell = begin; cell < end; ++cell) {
    const float weight = weight_of(args, cell);
    if (weight != 0) {
      load_cell(set, args.layer, cell, tile.rows.data() + tile.count * tile.stride);
      tile.cells[tile.count] = cell;
      tile.weights[tile.count++] = weight;
    } else if (args.grad_out != nullptr) {
      std::fill_n(args.grad_out + cell * length, length, 0.0f);
    }
    if (tile.count == kMatchTile || (cell + 1 == end && (tile.count > 0 || first))) {
      flush(set, args, packed, scale, grad_weight, first, tile);
      first = false;
    }
  }
}

// Cells whose gradients wait in a cache for being written to tokens.
constexpr int64_t kSpreadCells = 24;

// What is larger than this is written past the caches, which would read it first, and cannot hold it.
constexpr int64_t kStreamedBytes = int64_t{4} << 20;

bool streams(const MatchLinearBwd& args) {
  const MatchGrid& grid = args.grid;
  return args.dtype == DType::kFloat32 && grid.width % kPadded == 0 &&
         reinterpret_cast<uintptr_t>(args.grad_tokens) % (kPadded * sizeof(float)) == 0 &&
         grid.images * grid.tokens() * grid.width * static_cast<int64_t>(sizeof(float)) > kStreamedBytes;
}

template <Simd kSimd>
BIMKERN_INLINE inline void stream_row(SimdTag<kSimd>, const float* row, int64_t width, float* out) {
  for (int64_t d = 0; d < width; d += Lanes<kSimd>::kCount) {
    Lanes<kSimd> lanes;
    lanes.load(row + d, Lanes<kSimd>::kCount);
    lanes.stream(out + d);
  }
}

// Writes a row to the tokens of a cell, or zeros where it is null.
template <typename Set>
BIMKERN_INLINE inline void spread(Set set, const MatchLinearBwd& args, bool streamed, int64_t cell, const float* row) {
  const MatchGrid& grid = args.grid;
  const int64_t right = grid.side == 1 ? 0 : 1, down = grid.side == 1 ? 0 : grid.columns;
  const int64_t token = cell % grid.cells();
  const int64_t first = cell / grid.cells() * grid.tokens() + (grid.side == 1 ? token : corner_of(token, grid.columns));
  for (int64_t i = 0; i < grid.side * grid.side; ++i) {
    const int64_t at = (first + i % 2 * right + i / 2 * down) * grid.width;
    if (row == nullptr) {
      const int64_t size = bytes_of(args.dtype);
      std::memset(static_cast<char*>(args.grad_tokens) + at * size, 0, grid.width * size);
    } else if (streamed) {
      stream_row(set, row, grid.width, static_cast<float*>(args.grad_tokens) + at);
    } else {
      store_row(set, row, grid.width, args.dtype, args.grad_tokens, at);
    }
  }
}

void spread_grads(const MatchLinearBwd& args, const Parallel& parallel, Simd simd) {
  const MatchGrid& grid = args.grid;
  const int64_t length = grid.length, width = grid.width, cells = grid.all_cells();
  const bool streamed = streams(args);
  const int64_t stride = tile_stride(width);
  const float part = grid.side == 1 ? 1.0f : 0.25f;  // of a cell's gradient, to each of its tokens
  Floats packed(length * stride);
  for (int64_t i = 0; i < length * width; ++i) {
    packed.data()[i / width * stride + i % width] = args.weight[i] * part;
  }
  parallel(ceil_div(cells, kSpreadCells), 4, [&](int64_t begin, int64_t end) {
    std::vector<float> grad(kSpreadCells * length), rows(kSpreadCells * width);
    std::vector<int64_t> found(kSpreadCells);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      const int64_t last = std::min(cells, end * kSpreadCells);
      int64_t count = 0;
      for (int64_t cell = begin * kSpreadCells; cell < last; ++cell) {
        const float* from = args.grad_out + cell * length;
        if (std::all_of(from, from + length, [](float value) { return value == 0; })) {
          spread(set, args, streamed, cell, nullptr);
        } else {
          std::copy_n(from, length, grad.data() + count * length);
          found[count++] = cell;
        }
        if (count == kSpreadCells || cell + 1 == last) {
          multiply(set, LaneProduct{count, width, length, grad.data(), length, 1, packed.data(), stride, nullptr, 0,
                                    rows.data(), width});
          for (int64_t i = 0; i < count; ++i) {
            spread(set, args, streamed, found[i], rows.data() + i * width);
          }
          count = 0;
        }
      }
    });
    fence_streams();
  });
}

// sum [width] = the sum of rows, a stride apart, in their order.
template <typename T>
void add_rows(Simd simd, const T* rows, int64_t count, int64_t stride, int64_t width, float* sum) {
  std::vector<double> total(width);
  vectorized(simd, [&](auto) BIMKERN_INLINE {
    for (int64_t i = 0; i < count; ++i) {
      const T* __restrict row = rows + i * stride;
      double* __restrict to = total.data();
      for (int64_t d = 0; d < width; ++d) {
        to[d] += row[d];
      }
    }
  });
  std::copy(total.begin(), total.end(), sum);
}

// Rows of tokens that are fetched before they are multiplied where they lie.
constexpr int64_t kAhead = 12;

}  // namespace

void match_linear(const MatchLinear& args, const Parallel& parallel, Simd simd) {
  const MatchLayer& layer = args.layer;
  const MatchGrid& grid = layer.grid;
  const int64_t length = grid.length, width = grid.width, cells = grid.all_cells();
  const bool in_place = grid.side == 1 && layer.dtype == DType::kFloat32 && args.means == nullptr &&
                        layer.image_stride == grid.tokens() * layer.token_stride;
  Floats packed(width * padded(length));
  pack_transposed(layer, packed.data());
  parallel(ceil_div(cells, kMatchTile), 1, [&](int64_t begin, int64_t end) {
    const int64_t stride = tile_stride(width);
    Floats rows(in_place ? 0 : kMatchTile * stride);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t cell = begin * kMatchTile; cell < std::min(cells, end * kMatchTile); cell += kMatchTile) {
        const int64_t count = std::min(kMatchTile, cells - cell);
        for (int64_t i = 0; i < (in_place ? 0 : count); ++i) {
          float* row = rows.data() + i * stride;
          load_cell(set, layer, cell + i, row);
          if (args.means != nullptr) {
            std::memcpy(args.means + (cell + i) * width, row, width * sizeof(float));
          }
        }
        const float* left =
            in_place ? static_cast<const float*>(layer.tokens) + cell * layer.token_stride : rows.data();
        multiply(set,
                 LaneProduct{count, length, width, left, in_place ? layer.token_stride : stride, 1, packed.data(),
                             padded(length), layer.bias, 0, args.out + cell * length, length, in_place ? kAhead : 0});
      }
    });
  });
}

void match_linear_loss(const MatchLinearLoss& args, const Parallel& parallel, Simd simd) {
  const MatchGrid& grid = args.layer.grid;
  const int64_t length = grid.length, width = grid.width, cells = grid.all_cells();
  const int64_t slabs = match_slabs(cells), slab = slabs == 0 ? 0 : ceil_div(cells, slabs);
  const double share = *args.denominator == 0 ? 0 : 1 / (static_cast<double>(*args.denominator) * length);
  const auto scale = static_cast<float>(args.kind == LossKind::kL2 ? 2 * share : share);
  Floats packed(width * padded(length));
  pack_transposed(args.layer, packed.data());
  std::vector<double> losses(slabs), grad_bias(slabs * length);
  parallel(slabs, 1, [&](int64_t begin, int64_t end) {
    Tile tile(grid);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        float* grad_weight = args.scratch + i * length * width;
        add_slab(set, args, packed.data(), scale, i * slab, std::min(cells, (i + 1) * slab), grad_weight, tile);
        losses[i] = tile.loss;
        std::copy(tile.grad_bias.begin(), tile.grad_bias.end(), grad_bias.begin() + i * length);
      }
    });
  });
  *args.loss = static_cast<float>(std::accumulate(losses.begin(), losses.end(), 0.0) * share);
  if (args.grad_out == nullptr) {
    return;
  }
  parallel(length * width, 1 << 14, [&](int64_t begin, int64_t end) {
    add_rows(simd, args.scratch + begin, slabs, length * width, end - begin, args.grad_weight + begin);
  });
  add_rows(simd, grad_bias.data(), slabs, length, length, args.grad_bias);
}

void match_linear_bwd(const MatchLinearBwd& args, const Parallel& parallel, Simd simd) {
  const int64_t length = args.grid.length, width = args.grid.width, cells = args.grid.all_cells();
  if (args.grad_tokens != nullptr) {
    spread_grads(args, parallel, simd);
  }
  if (args.grad_weight != nullptr) {
    match_product(
        {length, cells, width, args.grad_out, 1, length, args.x, width, nullptr, false, args.grad_weight, width},
        parallel, simd);
  }
  if (args.grad_bias != nullptr) {
    add_rows(simd, args.grad_out, cells, length, length, args.grad_bias);
  }
}

}  // namespace bimkern
