// CPU kernels of match_predict.h.
//
// Pooling is parallel over cells. A product is parallel over blocks of its result, each of which sums runs of kDepth
// products in registers and adds those to memory, so that no bit depends on blocks or threads.
#include "ops/match_predict.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/lanes.h"
#include "core/rows.h"

namespace bimkern {
namespace {

template <typename A>
BIMKERN_INLINE inline void quarter_row(int64_t width, A* __restrict row) {
  for (int64_t d = 0; d < width; ++d) {
    row[d] *= A(0.25);
  }
}

// row = the sum of a square of tokens.
template <typename Set, typename A>
BIMKERN_INLINE inline void sum_square(Set set, const MatchPool& args, int64_t first, A* row) {
  std::fill_n(row, args.width, A(0));
  for (const int64_t token : {int64_t{0}, int64_t{1}, args.columns, args.columns + 1}) {
    visit_row<A>(args.tokens_dtype, args.tokens, first + token * args.token_stride,
                 [&](const auto* from) BIMKERN_INLINE { accumulate_row(set, from, args.width, row); });
  }
}

// The first token of a cell's square.
int64_t corner_of(int64_t cell, int64_t columns) {
  const int64_t half = columns / 2;
  return cell / half * 2 * columns + cell % half * 2;
}

template <typename A>
void pool(const MatchPool& args, const Parallel& parallel, Simd simd) {
  const int64_t cells = args.rows / 2 * (args.columns / 2), width = args.width;
  parallel(args.images * cells, grain_rows(4 * width * bytes_of(args.tokens_dtype)), [&](int64_t begin, int64_t end) {
    std::vector<A> row(width);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t size = bytes_of(args.dtype);
        if (args.weight != nullptr && static_cast<const A*>(args.weight)[i] == 0) {
          std::memset(static_cast<char*>(args.out) + i * width * size, 0, width * size);
          continue;
        }
        const int64_t first = i / cells * args.image_stride + corner_of(i % cells, args.columns) * args.token_stride;
        sum_square(set, args, first, row.data());
        quarter_row(width, row.data());
        store_row(set, row.data(), width, args.dtype, args.out, i * width);
      }
    });
  });
}

template <typename A>
void pool_bwd(const MatchPoolBwd& args, const Parallel& parallel, Simd simd) {
  const int64_t cells = args.rows / 2 * (args.columns / 2), width = args.width;
  parallel(args.images * cells, grain_rows(4 * width * bytes_of(args.tokens_dtype)), [&](int64_t begin, int64_t end) {
    std::vector<A> row(width);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        load_row(set, args.dtype, args.grad, i * width, width, row.data());
        quarter_row(width, row.data());
        const int64_t first = i / cells * (4 * cells) + corner_of(i % cells, args.columns);
        for (const int64_t token : {int64_t{0}, int64_t{1}, args.columns, args.columns + 1}) {
          store_row(set, row.data(), width, args.tokens_dtype, args.grad_tokens, (first + token) * width);
        }
      }
    });
  });
}

// Products that are summed in registers.
constexpr int64_t kDepth = 256;

// A block of the result, that one thread makes.
constexpr int64_t kBlockRows = 120;
constexpr int64_t kBlockColumns = 128;
constexpr int64_t kNarrowColumns = 64;  // where there is one block of rows: more threads find work
constexpr int64_t kPadded = 16;
constexpr int64_t kFewRows = 32;  // not worth packing for

// A part of the operands: out [kRows, columns] = before + left @ right over depth.
struct Part {
  const float* left;
  int64_t left_row_stride;
  int64_t left_depth_stride;
  const float* right;  // packed: columns are a multiple of kPadded
  int64_t right_stride;
  int64_t depth;
  const float* before;  // null for zero
  int64_t before_stride;
  float* out;
  int64_t out_stride;
};

// kColumns registers of columns, the last of which has `last` lanes.
template <int kRows, int kColumns, typename Register>
BIMKERN_INLINE inline void multiply_tile(const Part& part, int last) {
  Register sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      sums[r][c].clear();
    }
  }
  for (int64_t k = 0; k < part.depth; ++k) {
    Register right[kColumns];
    for (int c = 0; c < kColumns; ++c) {
      right[c].load(part.right + k * part.right_stride + c * Register::kCount, Register::kCount);
    }
    for (int r = 0; r < kRows; ++r) {
      const float left = part.left[r * part.left_row_stride + k * part.left_depth_stride];
      for (int c = 0; c < kColumns; ++c) {
        sums[r][c].add_product(left, right[c]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      const int count = c + 1 < kColumns ? Register::kCount : last;
      if (part.before != nullptr) {
        Register before;
        before.load(part.before + r * part.before_stride + c * Register::kCount, count);
        sums[r][c].add(before);
      }
      sums[r][c].store(part.out + r * part.out_stride + c * Register::kCount, count);
    }
  }
}

// columns <= kColumns registers.
template <int kRows, int kColumns, typename Register>
BIMKERN_INLINE inline void multiply_columns(const Part& part, int64_t columns) {
  if constexpr (kColumns > 1) {
    if (columns <= (kColumns - 1) * Register::kCount) {
      return multiply_columns<kRows, kColumns - 1, Register>(part, columns);
    }
  }
  const int last = static_cast<int>(columns) - (kColumns - 1) * Register::kCount;
  multiply_tile<kRows, kColumns, Register>(part, last);
}

// Takes kRows rows at a time and returns how many of all are done.
template <int kRows, typename Register>
BIMKERN_INLINE inline int64_t multiply_rows(const Part& part, int64_t begin, int64_t rows, int64_t columns) {
  constexpr int64_t kWidth = Register::kRegisters * Register::kCount;
  for (; begin + kRows <= rows; begin += kRows) {
    for (int64_t c = 0; c < columns; c += kWidth) {
      Part tile = part;
      tile.left += begin * part.left_row_stride;
      tile.right += c;
      tile.before += part.before == nullptr ? 0 : begin * part.before_stride + c;
      tile.out += begin * part.out_stride + c;
      multiply_columns<kRows, Register::kRegisters, Register>(tile, std::min(kWidth, columns - c));
    }
  }
  return begin;
}

template <Simd kSimd>
BIMKERN_INLINE inline void multiply_block(SimdTag<kSimd>, const Part& part, int64_t rows, int64_t columns) {
  int64_t done = multiply_rows<6, Lanes<kSimd>>(part, 0, rows, columns);
  done = multiply_rows<3, Lanes<kSimd>>(part, done, rows, columns);
  multiply_rows<1, Lanes<kSimd>>(part, done, rows, columns);
}

// Rows side by side and aligned: rows far apart compete for few places of a cache.
BIMKERN_INLINE inline void pack(const float* from, int64_t stride, int64_t rows, int64_t columns, int64_t padded,
                                float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(from + r * stride, columns, to + r * padded);
    std::fill(to + r * padded + columns, to + (r + 1) * padded, 0.0f);
  }
}

// Cells whose gradients wait in a cache for being written to tokens.
constexpr int64_t kSpreadCells = 60;

// rows: of cells [begin, end).
template <typename Set>
BIMKERN_INLINE inline void spread_rows(Set set, const MatchSpread& args, int64_t begin, int64_t end, float* rows) {
  const int64_t cells = args.rows * args.columns / (args.side * args.side), width = args.width;
  for (int64_t cell = begin; cell < end; ++cell, rows += width) {
    if (args.side == 1) {
      store_row(set, static_cast<const float*>(rows), width, args.dtype, args.grad_tokens, cell * width);
      continue;
    }
    quarter_row(width, rows);
    const int64_t first = cell / cells * (4 * cells) + corner_of(cell % cells, args.columns);
    for (const int64_t token : {int64_t{0}, int64_t{1}, args.columns, args.columns + 1}) {
      store_row(set, static_cast<const float*>(rows), width, args.dtype, args.grad_tokens, (first + token) * width);
    }
  }
}

}  // namespace

void match_pool(const MatchPool& args, const Parallel& parallel, Simd simd) {
  dispatch_arithmetic(args.dtype, [&](auto type) { pool<decltype(type)>(args, parallel, simd); });
}

void match_pool_bwd(const MatchPoolBwd& args, const Parallel& parallel, Simd simd) {
  dispatch_arithmetic(args.dtype, [&](auto type) { pool_bwd<decltype(type)>(args, parallel, simd); });
}

void match_product(const MatchProduct& args, const Parallel& parallel, Simd simd) {
  const int64_t down = ceil_div(args.rows, kBlockRows), wide = down > 1 ? kBlockColumns : kNarrowColumns;
  const int64_t across = ceil_div(args.columns, wide);
  parallel(down * across, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float right[kDepth * kBlockColumns];
    const float* packed = nullptr;
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / across * kBlockRows, column = i % across * wide;
        const int64_t rows = std::min(kBlockRows, args.rows - row);
        const int64_t columns = std::min(wide, args.columns - column);
        const int64_t padded = ceil_div(columns, kPadded) * kPadded;
        const float* bias = args.bias == nullptr ? nullptr : args.bias + column;
        Part part{};
        part.left_row_stride = args.left_row_stride;
        part.left_depth_stride = args.left_depth_stride;
        part.out = args.out + row * args.out_stride + column;
        part.out_stride = args.out_stride;
        int64_t k = 0;
        do {  // once where depth is 0, too
          part.depth = std::min(kDepth, args.depth - k);
          part.left = args.left + row * args.left_row_stride + k * args.left_depth_stride;
          part.before = args.add || k > 0 ? part.out : bias;
          part.before_stride = args.add || k > 0 ? args.out_stride : 0;
          const float* from = args.right + k * args.right_stride + column;
          const bool direct = rows <= kFewRows && columns == padded;
          if (!direct && packed != from) {
            pack(from, args.right_stride, part.depth, columns, padded, right);
            packed = from;
          }
          part.right = direct ? from : right;
          part.right_stride = direct ? args.right_stride : padded;
          multiply_block(set, part, rows, columns);
          k += kDepth;
        } while (k < args.depth);
      }
    });
  });
}

void match_spread(const MatchSpread& args, const Parallel& parallel, Simd simd) {
  const int64_t cells = args.images * args.rows * args.columns / (args.side * args.side);
  parallel(ceil_div(cells, kSpreadCells), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> rows(kSpreadCells * args.width);
    for (int64_t cell = begin * kSpreadCells; cell < std::min(cells, end * kSpreadCells); cell += kSpreadCells) {
      const int64_t count = std::min(cells - cell, kSpreadCells);
      match_product({count, args.length, args.width, args.grad + cell * args.grad_stride, args.grad_stride, 1,
                     args.weight, args.width, nullptr, false, rows.data(), args.width},
                    serial(), simd);
      vectorized(simd, [&](auto set) BIMKERN_INLINE { spread_rows(set, args, cell, cell + count, rows.data()); });
    }
  });
}

}  // namespace bimkern
