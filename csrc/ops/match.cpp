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

constexpr int kLanes = 16;

template <typename A>
struct Lanes {
  A part[kLanes] = {};

  BIMKERN_INLINE A sum() const {
    A half[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      half[i] = part[i];
    }
    for (int size = kLanes / 2; size > 0; size /= 2) {
      for (int i = 0; i < size; ++i) {
        half[i] += half[i + size];
      }
    }
    return half[0];
  }
};

// Calls f(d, lane) for every d in [0, width).
template <typename F>
BIMKERN_INLINE inline void for_lanes(int64_t width, const F& f) {
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      f(d + i, i);
    }
  }
  for (int i = 0; d + i < width; ++i) {
    f(d + i, i);
  }
}

int64_t num_cells(const MatchCells& cells) { return cells.images * cells.rows * cells.columns; }

// Those in [begin, end).
void check_cells(const char* op, const MatchCells& cells, int64_t begin, int64_t end) {
  check_keep(op, Keep{cells.ids + begin, 0, 1}, TokenSizes{1, 0, num_cells(cells), end - begin, 0}, "cells");
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

// row = x + x_bias.
template <typename Set, typename T, typename A>
BIMKERN_INLINE inline void biased_row(Set set, const T* x, const A* x_bias, int64_t width, A* row) {
  load_row(set, x, width, row);
  for (int64_t d = 0; d < width; ++d) {
    row[d] += x_bias[d];
  }
}

template <typename Set, typename T>
BIMKERN_INLINE inline void norm_row(Set set, const MatchNorm& args, int64_t i, typename Arithmetic<T>::type* row) {
  using A = typename Arithmetic<T>::type;
  const int64_t width = args.width;
  const auto* weight = static_cast<const A*>(args.weight);
  const auto* bias = static_cast<const A*>(args.bias);
  auto* slope = static_cast<A*>(args.slope) + i * width;
  auto* stats = static_cast<A*>(args.stats) + 2 * i;
  biased_row(set, static_cast<const T*>(args.x) + i * width, static_cast<const A*>(args.x_bias), width, row);
  Lanes<A> total, squares;
  for_lanes(width, [&](int64_t d, int lane) BIMKERN_INLINE { total.part[lane] += row[d]; });
  const A mean = total.sum() / static_cast<A>(width);
  for_lanes(width,
            [&](int64_t d, int lane) BIMKERN_INLINE { squares.part[lane] += (row[d] - mean) * (row[d] - mean); });
  const A scale = 1 / std::sqrt(squares.sum() / static_cast<A>(width) + static_cast<A>(args.eps));
  for (int64_t d = 0; d < width; ++d) {
    const Gelu<A> active = gelu((row[d] - mean) * scale * weight[d] + bias[d]);
    row[d] = active.value;
    slope[d] = active.slope;
  }
  store_row(set, row, width, static_cast<T*>(args.out) + i * width);
  stats[0] = mean;
  stats[1] = scale;
}

// Adds a block's sums to those of its three gradients; row, grad: scratch of width.
template <typename Set, typename T>
BIMKERN_INLINE inline void norm_bwd_row(Set set, const MatchNormBwd& args, int64_t i, typename Arithmetic<T>::type* row,
                                        typename Arithmetic<T>::type* grad, typename Arithmetic<T>::type* sums) {
  using A = typename Arithmetic<T>::type;
  const int64_t width = args.width;
  const auto* weight = static_cast<const A*>(args.weight);
  const auto* slope = static_cast<const A*>(args.slope) + i * width;
  const auto* stats = static_cast<const A*>(args.stats) + 2 * i;
  T* grad_row = static_cast<T*>(args.grad) + i * width;
  const A mean = stats[0], scale = stats[1];
  biased_row(set, static_cast<const T*>(args.x) + i * width, static_cast<const A*>(args.x_bias), width, row);
  load_row(set, grad_row, width, grad);
  A *weight_sums = sums, *bias_sums = sums + width, *x_sums = sums + 2 * width;
  for (int64_t d = 0; d < width; ++d) {
    row[d] = (row[d] - mean) * scale;
    const A after_norm = grad[d] * slope[d];
    weight_sums[d] += after_norm * row[d];
    bias_sums[d] += after_norm;
    grad[d] = after_norm * weight[d];
  }
  Lanes<A> total, along;
  for_lanes(width, [&](int64_t d, int lane) BIMKERN_INLINE {
    total.part[lane] += grad[d];
    along.part[lane] += grad[d] * row[d];
  });
  const A mean_grad = total.sum() / static_cast<A>(width), mean_along = along.sum() / static_cast<A>(width);
  for (int64_t d = 0; d < width; ++d) {
    grad[d] = (grad[d] - mean_grad - row[d] * mean_along) * scale;
    x_sums[d] += grad[d];
  }
  store_row(set, grad, width, grad_row);
}

// sums += the sum of scratch [blocks, width] over blocks, in their order.
void add_blocks(const double* scratch, int64_t blocks, int64_t width, double* sums) {
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t d = 0; d < width; ++d) {
      sums[d] += scratch[block * width + d];
    }
  }
}

template <typename T>
void norm(const MatchNorm& args, const Parallel& parallel, Simd simd) {
  parallel(match_blocks(args.rows), 1, [&](int64_t begin, int64_t end) {
    std::vector<typename Arithmetic<T>::type> row(args.width);
    vectorised(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin * kMatchBlock; i < std::min(args.rows, end * kMatchBlock); ++i) {
        norm_row<decltype(set), T>(set, args, i, row.data());
      }
    });
  });
}

template <typename T>
void norm_bwd(const MatchNormBwd& args, const Parallel& parallel, Simd simd) {
  using A = typename Arithmetic<T>::type;
  const int64_t blocks = match_blocks(args.rows), width = args.width;
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> row(width), grad(width), sums(3 * width);
    vectorised(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t block = begin; block < end; ++block) {
        std::fill(sums.begin(), sums.end(), A(0));
        for (int64_t i = block * kMatchBlock; i < std::min(args.rows, (block + 1) * kMatchBlock); ++i) {
          norm_bwd_row<decltype(set), T>(set, args, i, row.data(), grad.data(), sums.data());
        }
        std::copy(sums.begin(), sums.end(), args.scratch + block * 3 * width);
      }
    });
  });
  add_blocks(args.scratch, blocks, 3 * width, args.sums);
}

// pred = weight * error of one run of values, which lie side by side in the target too.
template <typename A>
BIMKERN_INLINE inline void error_run(MatchKind kind, A weight, const A* target, const A* bias, int64_t length, A* pred,
                                     A* columns, Lanes<A>& loss) {
  if (kind == MatchKind::kL2) {
    for_lanes(length, [&](int64_t d, int lane) BIMKERN_INLINE {
      const A error = pred[d] + bias[d] - target[d];
      pred[d] = weight * error;
      loss.part[lane] += pred[d] * error;
      columns[d] += pred[d];
    });
  } else {
    for_lanes(length, [&](int64_t d, int lane) BIMKERN_INLINE {
      const A error = pred[d] + bias[d] - target[d];
      const A sign = static_cast<A>(error > 0) - static_cast<A>(error < 0);
      loss.part[lane] += weight * error * sign;
      pred[d] = weight * sign;
      columns[d] += pred[d];
    });
  }
}

// The predictions of one hidden cell; row: scratch of width S.
template <typename Set, typename T>
BIMKERN_INLINE inline void error_cell(Set set, const MatchError& args, int64_t i, typename Arithmetic<T>::type* row,
                                      typename Arithmetic<T>::type* columns,
                                      Lanes<typename Arithmetic<T>::type>& loss) {
  using A = typename Arithmetic<T>::type;
  const int64_t cells = args.cells.rows * args.cells.columns;
  const int64_t id = args.cells.ids[i];
  const int64_t image = id / cells, cell = id % cells;
  const int64_t top = cell / args.cells.columns * args.side, left = cell % args.cells.columns * args.side;
  const A weight =
      static_cast<const A*>(args.weight)[image * args.weight_image_stride + cell * args.weight_cell_stride];
  const A* target = static_cast<const A*>(args.target) + image * args.target_image_stride;
  const auto* bias = static_cast<const A*>(args.bias);
  const int64_t square = std::min<int64_t>(args.side, 2);  // sides of what one row of pred holds
  const int64_t squares = args.side / square;              // and rows a cell has, a side
  const bool side_by_side = args.target_cell_stride == args.length;
  const int64_t runs = side_by_side ? 1 : square, length = side_by_side ? square * args.length : args.length;
  for (int64_t q = 0; q < squares * squares; ++q) {
    T* pred = static_cast<T*>(args.pred) + (i * squares * squares + q) * args.width;
    load_row(set, pred, args.width, row);
    const int64_t y = top + q / squares * square, x = left + q % squares * square;
    int64_t d = 0;
    for (int64_t line = 0; line < square; ++line) {
      for (int64_t run = 0; run < runs; ++run, d += length) {
        const int64_t at = (y + line) * args.cells.columns * args.side + x + run;
        error_run(args.kind, weight, target + at * args.target_cell_stride, bias + d, length, row + d, columns + d,
                  loss);
      }
    }
    std::fill(row + d, row + args.width, A(0));
    store_row(set, row, args.width, pred);
  }
}

template <typename T>
void error(const MatchError& args, const Parallel& parallel, Simd simd) {
  using A = typename Arithmetic<T>::type;
  const int64_t blocks = match_blocks(args.cells.count), sums = 1 + args.width;
  parallel(blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> row(args.width), columns(args.width);
    vectorised(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t block = begin; block < end; ++block) {
        double total = 0;
        std::fill(columns.begin(), columns.end(), A(0));
        for (int64_t i = block * kMatchBlock; i < std::min(args.cells.count, (block + 1) * kMatchBlock); ++i) {
          Lanes<A> loss;
          error_cell<decltype(set), T>(set, args, i, row.data(), columns.data(), loss);
          total += loss.sum();
        }
        args.scratch[block * sums] = total;
        std::copy(columns.begin(), columns.end(), args.scratch + block * sums + 1);
      }
    });
  });
  add_blocks(args.scratch, blocks, sums, args.sums);
}

}  // namespace

void match_rows(const MatchRows& args, const Parallel& parallel) {
  check_cells("match_rows", args.cells, 0, args.cells.count);
  dispatch(args.dtype, [&](auto type) { gather_rows<decltype(type)>(args, parallel); });
}

void match_rows_bwd(const MatchRowsBwd& args, const Parallel& parallel) {
  check_cells("match_rows_bwd", args.cells, args.begin, std::min(args.end + 1, args.cells.count));
  dispatch(args.dtype, [&](auto type) { scatter_rows<decltype(type)>(args, parallel); });
}

void match_norm(const MatchNorm& args, const Parallel& parallel, Simd simd) {
  dispatch(args.dtype, [&](auto type) { norm<decltype(type)>(args, parallel, simd); });
}

void match_norm_bwd(const MatchNormBwd& args, const Parallel& parallel, Simd simd) {
  dispatch(args.dtype, [&](auto type) { norm_bwd<decltype(type)>(args, parallel, simd); });
}

void match_error(const MatchError& args, const Parallel& parallel, Simd simd) {
  check_cells("match_error", args.cells, 0, args.cells.count);
  dispatch(args.dtype, [&](auto type) { error<decltype(type)>(args, parallel, simd); });
}

}  // namespace bimkern
