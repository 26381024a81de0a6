// CPU kernels of match.h. What they read and write lies in the caches, but for tokens and target: a chunk is small.
//
// Parallel over blocks of kMatchBlock rows. Sums along a row go over kLanes partial ones, the same on every instruction
// set; sums over rows are float64 from block to block.
#include "ops/match.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/gelu.h"
#include "core/rows.h"
#include "ops/keep.h"

namespace bimkern {
namespace {

// Rows, or cells, that are summed in the type of the arithmetic; on from there in float64.
constexpr int64_t kSummed = 8;

template <typename A>
BIMKERN_INLINE inline A dot(const A* a, const A* b, int64_t width) {
  return lane_sum<A>(width, [=](int64_t d) BIMKERN_INLINE { return a[d] * b[d]; });
}

template <typename A>
BIMKERN_INLINE inline A mean_of(const A* row, int64_t width) {
  return lane_sum<A>(width, [=](int64_t d) BIMKERN_INLINE { return row[d]; }) / static_cast<A>(width);
}

int64_t num_cells(const MatchCells& cells) { return cells.images * cells.rows * cells.columns; }

// Those in [begin, end).
void check_cells(const char* op, const MatchCells& cells, int64_t begin, int64_t end) {
  check_keep(op, Keep{cells.ids + begin, 0, 1}, TokenSizes{1, 0, num_cells(cells), end - begin, 0}, "cells");
}

template <typename A>
int64_t find_masked(const MatchMasked& args) {
  int64_t found = 0;
  for (int64_t image = 0; image < args.images; ++image) {
    const A* row = static_cast<const A*>(args.mask) + image * args.image_stride;
    for (int64_t cell = 0; cell < args.cells; ++cell) {
      args.ids[found] = image * args.cells + cell;  // stays if it is masked
      found += args.every || row[cell * args.cell_stride] != 0;
    }
  }
  return found;
}

template <typename T>
void gather_rows(const MatchRows& args, const Parallel& parallel) {
  const int64_t tokens = args.cells.rows * args.cells.columns;
  const int64_t row_bytes = args.width * static_cast<int64_t>(sizeof(T));
  parallel(args.cells.count, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t id = args.cells.ids[i];
      const T* row = static_cast<const T*>(args.tokens) + id / tokens * args.image_stride;
      std::memcpy(static_cast<T*>(args.out) + i * args.width, row + id % tokens * args.token_stride, row_bytes);
    }
  });
}

template <typename T>
void scatter_rows(const MatchRowsBwd& args, const Parallel& parallel) {
  const MatchCells& cells = args.cells;
  const int64_t row_bytes = args.width * static_cast<int64_t>(sizeof(T));
  const int64_t first = args.begin == 0 ? 0 : cells.ids[args.begin];
  const int64_t last = args.end == cells.count ? num_cells(cells) : cells.ids[args.end];
  auto* out = static_cast<T*>(args.grad_tokens);
  parallel(last - first, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    const int64_t* stop = cells.ids + args.end;
    const int64_t* next = std::lower_bound(cells.ids + args.begin, stop, first + begin);
    for (int64_t id = first + begin; id < first + end; ++id) {
      if (next != stop && *next == id) {
        const T* row = static_cast<const T*>(args.grad_rows) + (next - cells.ids - args.begin) * args.width;
        std::memcpy(out + id * args.width, row, row_bytes);
        ++next;
      } else {
        std::memset(static_cast<void*>(out + id * args.width), 0, row_bytes);
      }
    }
  });
}

template <typename A>
BIMKERN_INLINE inline void add_to_row(const A* __restrict added, int64_t width, A* __restrict row) {
  for (int64_t d = 0; d < width; ++d) {
    row[d] += added[d];
  }
}

template <typename A>
BIMKERN_INLINE inline void activate_row(const A* __restrict weight, const A* __restrict bias, A scale, int64_t width,
                                        A* __restrict row, A* __restrict slope) {
  for (int64_t d = 0; d < width; ++d) {
    const Gelu<A> active = gelu(row[d] * scale * weight[d] + bias[d]);
    row[d] = active.value;
    slope[d] = active.slope;
  }
}

template <typename Set, typename A>
BIMKERN_INLINE inline void norm_row(Set set, const MatchNorm& args, int64_t i, A* row) {
  const int64_t width = args.width;
  auto* stats = static_cast<A*>(args.stats) + 2 * i;
  load_row(set, args.dtype, args.x, i * width, width, row);
  add_to_row(static_cast<const A*>(args.x_bias), width, row);
  const A mean = mean_of(row, width);
  for (int64_t d = 0; d < width; ++d) {
    row[d] -= mean;
  }
  const A scale = 1 / std::sqrt(dot(row, row, width) / static_cast<A>(width) + static_cast<A>(args.eps));
  activate_row(static_cast<const A*>(args.weight), static_cast<const A*>(args.bias), scale, width, row,
               static_cast<A*>(args.slope) + i * width);
  store_row(set, row, width, args.dtype, args.out, i * width);
  stats[0] = mean;
  stats[1] = scale;
}

// row: x, becomes normalized; grad: of the GELU, becomes that of the normalized row.
template <typename A>
BIMKERN_INLINE inline void affine_bwd_row(const A* __restrict weight, const A* __restrict slope, A mean, A scale,
                                          int64_t width, A* __restrict row, A* __restrict grad,
                                          A* __restrict weight_sums, A* __restrict bias_sums) {
  for (int64_t d = 0; d < width; ++d) {
    row[d] = (row[d] - mean) * scale;
    const A affine = grad[d] * slope[d];
    weight_sums[d] += affine * row[d];
    bias_sums[d] += affine;
    grad[d] = affine * weight[d];
  }
}

template <typename A>
BIMKERN_INLINE inline void norm_bwd_row(const A* __restrict row, A mean, A along, A scale, int64_t width,
                                        A* __restrict grad, A* __restrict sums) {
  for (int64_t d = 0; d < width; ++d) {
    grad[d] = (grad[d] - mean - row[d] * along) * scale;
    sums[d] += grad[d];
  }
}

// Adds to a block's sums [3, E]; row, grad: scratch.
template <typename Set, typename A>
BIMKERN_INLINE inline void bwd_row(Set set, const MatchNormBwd& args, int64_t i, A* row, A* grad, A* sums) {
  const int64_t width = args.width;
  const auto* slope = static_cast<const A*>(args.slope) + i * width;
  const auto* stats = static_cast<const A*>(args.stats) + 2 * i;
  load_row(set, args.dtype, args.x, i * width, width, row);
  add_to_row(static_cast<const A*>(args.x_bias), width, row);
  load_row(set, args.dtype, args.grad, i * width, width, grad);
  affine_bwd_row(static_cast<const A*>(args.weight), slope, stats[0], stats[1], width, row, grad, sums, sums + width);
  const A mean = mean_of(grad, width);
  const A along = dot(grad, row, width) / static_cast<A>(width);
  norm_bwd_row(row, mean, along, stats[1], width, grad, sums + 2 * width);
  store_row(set, grad, width, args.dtype, args.grad, i * width);
}

// total += sums; sums = 0.
template <typename A>
BIMKERN_INLINE inline void move_sums(int64_t width, A* __restrict sums, double* __restrict total) {
  for (int64_t d = 0; d < width; ++d) {
    total[d] += sums[d];
    sums[d] = 0;
  }
}

// sums += the sum of scratch [blocks, width] over blocks, in their order.
void add_blocks(const double* scratch, int64_t blocks, int64_t width, double* sums) {
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t d = 0; d < width; ++d) {
      sums[d] += scratch[block * width + d];
    }
  }
}

template <typename A>
void norm(const MatchNorm& args, const Parallel& parallel, Simd simd) {
  parallel(match_blocks(args.rows), 1, [&](int64_t begin, int64_t end) {
    std::vector<A> row(args.width);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin * kMatchBlock; i < std::min(args.rows, end * kMatchBlock); ++i) {
        norm_row(set, args, i, row.data());
      }
    });
  });
}

template <typename A>
void norm_bwd(const MatchNormBwd& args, const Parallel& parallel, Simd simd) {
  const int64_t blocks = match_blocks(args.rows), width = args.width;
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> row(width), grad(width), sums(3 * width);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t block = begin; block < end; ++block) {
        double* total = args.scratch + block * 3 * width;
        std::fill_n(total, 3 * width, 0.0);
        const int64_t last = std::min(args.rows, (block + 1) * kMatchBlock);
        for (int64_t i = block * kMatchBlock; i < last; ++i) {
          bwd_row(set, args, i, row.data(), grad.data(), sums.data());
          if ((i + 1) % kSummed == 0 || i + 1 == last) {
            move_sums(3 * width, sums.data(), total);
          }
        }
      }
    });
  });
  add_blocks(args.scratch, blocks, 3 * width, args.sums);
}

// row += bias - target.
template <typename A>
BIMKERN_INLINE inline void error_run(const A* __restrict bias, const A* __restrict target, int64_t length,
                                     A* __restrict row) {
  for (int64_t d = 0; d < length; ++d) {
    row[d] += bias[d] - target[d];
  }
}

// row: errors, become weight * error; returns the sum of weight * error^2.
template <typename A>
BIMKERN_INLINE inline A squared_row(A weight, int64_t width, A* __restrict row, A* __restrict columns) {
  const A loss = weight * dot(row, row, width);
  for (int64_t d = 0; d < width; ++d) {
    row[d] *= weight;
    columns[d] += row[d];
  }
  return loss;
}

// row: errors, become weight * sign; returns the sum of weight * |error|.
template <typename A>
BIMKERN_INLINE inline A absolute_row(A weight, int64_t width, A* __restrict row, A* __restrict columns,
                                     A* __restrict sign) {
  for (int64_t d = 0; d < width; ++d) {
    sign[d] = weight * (static_cast<A>(row[d] > 0) - static_cast<A>(row[d] < 0));
    columns[d] += sign[d];
  }
  const A loss = dot(row, sign, width);
  std::copy(sign, sign + width, row);
  return loss;
}

// The predictions of one masked cell; returns its share of the loss. row, sign: scratch of width S.
template <typename Set, typename A>
BIMKERN_INLINE inline double error_cell(Set set, const MatchError& args, int64_t i, A* row, A* sign, A* columns) {
  const int64_t cells = args.cells.rows * args.cells.columns;
  const int64_t id = args.cells.ids[i];
  const int64_t image = id / cells, cell = id % cells;
  const int64_t top = cell / args.cells.columns * args.side, left = cell % args.cells.columns * args.side;
  const int64_t weight_at = image * args.weight_image_stride + cell * args.weight_cell_stride;
  const A weight = static_cast<const A*>(args.weight)[weight_at];
  const A* target = static_cast<const A*>(args.target) + image * args.target_image_stride;
  const auto* bias = static_cast<const A*>(args.bias);
  const int64_t square = std::min<int64_t>(args.side, 2);  // sides of what one row of pred holds
  const int64_t squares = args.side / square;              // and rows a cell has, a side
  const bool side_by_side = args.target_cell_stride == args.length;
  const int64_t runs = side_by_side ? 1 : square, length = side_by_side ? square * args.length : args.length;
  double loss = 0;
  for (int64_t q = 0; q < squares * squares; ++q) {
    const int64_t pred_at = (i * squares * squares + q) * args.width;
    if (weight == 0) {  // what does not count is not read: it may be NaN
      const int64_t bytes = bytes_of(args.dtype);
      std::memset(static_cast<char*>(args.pred) + pred_at * bytes, 0, args.width * bytes);
      continue;
    }
    load_row(set, args.dtype, args.pred, pred_at, args.width, row);
    const int64_t y = top + q / squares * square, x = left + q % squares * square;
    int64_t d = 0;
    for (int64_t line = 0; line < square; ++line) {
      for (int64_t run = 0; run < runs; ++run, d += length) {
        const int64_t at = (y + line) * args.cells.columns * args.side + x + run;
        error_run(bias + d, target + at * args.target_cell_stride, length, row + d);
      }
    }
    std::fill(row + d, row + args.width, A(0));
    loss += args.kind == LossKind::kL2 ? squared_row(weight, args.width, row, columns)
                                       : absolute_row(weight, args.width, row, columns, sign);
    store_row(set, row, args.width, args.dtype, args.pred, pred_at);
  }
  return loss;
}

template <typename A>
void error(const MatchError& args, const Parallel& parallel, Simd simd) {
  const int64_t blocks = match_blocks(args.cells.count), sums = 1 + args.width;
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> row(args.width), sign(args.width), columns(args.width);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t block = begin; block < end; ++block) {
        double* total = args.scratch + block * sums;
        std::fill_n(total, sums, 0.0);
        const int64_t last = std::min(args.cells.count, (block + 1) * kMatchBlock);
        for (int64_t i = block * kMatchBlock; i < last; ++i) {
          total[0] += error_cell(set, args, i, row.data(), sign.data(), columns.data());
          if ((i + 1) % kSummed == 0 || i + 1 == last) {
            move_sums(args.width, columns.data(), total + 1);
          }
        }
      }
    });
  });
  add_blocks(args.scratch, blocks, sums, args.sums);
}

}  // namespace

int64_t match_masked(const MatchMasked& args) {
  int64_t found = 0;
  dispatch_wide(args.dtype, [&](auto type) { found = find_masked<decltype(type)>(args); });
  return found;
}

void match_rows(const MatchRows& args, const Parallel& parallel) {
  check_cells("match_rows", args.cells, 0, args.cells.count);
  dispatch(args.dtype, [&](auto type) { gather_rows<decltype(type)>(args, parallel); });
}

void match_rows_bwd(const MatchRowsBwd& args, const Parallel& parallel) {
  check_cells("match_rows_bwd", args.cells, args.begin, std::min(args.end + 1, args.cells.count));
  dispatch(args.dtype, [&](auto type) { scatter_rows<decltype(type)>(args, parallel); });
}

void match_norm(const MatchNorm& args, const Parallel& parallel, Simd simd) {
  dispatch_arithmetic(args.dtype, [&](auto type) { norm<decltype(type)>(args, parallel, simd); });
}

void match_norm_bwd(const MatchNormBwd& args, const Parallel& parallel, Simd simd) {
  dispatch_arithmetic(args.dtype, [&](auto type) { norm_bwd<decltype(type)>(args, parallel, simd); });
}

void match_error(const MatchError& args, const Parallel& parallel, Simd simd) {
  check_cells("match_error", args.cells, 0, args.cells.count);
  dispatch_arithmetic(args.dtype, [&](auto type) { error<decltype(type)>(args, parallel, simd); });
}

}  // namespace bimkern
