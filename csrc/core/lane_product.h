// Products of float32 matrices by tiles of registers, to be called inside of vectorized().
//
// Each element sums kDepth fused multiply-adds in registers, in the order of depth, and adds those to memory: the same
// bits in every block of a product, and on every instruction set.
//
// Not the product of core/product.h: its chains are shorter, its shapes whole tiles, and it has float64 too.
#pragma once

#include <algorithm>

#include "core/lanes.h"

namespace bimkern {

// Products that are summed in registers.
constexpr int64_t kDepth = 256;

// Registers of the right factor are loaded whole, so its rows are a multiple of this.
constexpr int64_t kPadded = 16;
inline int64_t padded(int64_t columns) { return ceil_div(columns, kPadded) * kPadded; }

// out [rows, columns] = before + left [rows, depth] @ right [depth, columns].
struct LaneProduct {
  int64_t rows;
  int64_t columns;
  int64_t depth;
  const float* left;
  int64_t left_row_stride;
  int64_t left_depth_stride;
  const float* right;  // rows of padded(columns) values
  int64_t right_stride;
  const float* before;  // null for zero
  int64_t before_stride;
  float* out;
  int64_t out_stride;
  int64_t ahead = 0;  // left comes from memory: rows to fetch it by before they are needed

  LaneProduct at(int64_t row, int64_t column) const {
    LaneProduct part = *this;
    part.left += row * left_row_stride;
    part.right += column;
    part.before += before == nullptr ? 0 : row * before_stride + column;
    part.out += row * out_stride + column;
    return part;
  }
};

// kRows rows and kColumns registers of columns, the last of which has `last` lanes.
template <int kRows, int kColumns, typename Register>
BIMKERN_INLINE inline void multiply_tile(const LaneProduct& part, int64_t depth, int last) {
  Register sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kColumns; ++c) {
      sums[r][c].clear();
    }
  }
  for (int64_t line = 0; line < depth; line += kPadded) {
    for (int r = 0; r < kRows && part.ahead != 0; ++r) {
      __builtin_prefetch(part.left + (r + part.ahead) * part.left_row_stride + line);
    }
    for (int64_t k = line; k < std::min(depth, line + kPadded); ++k) {
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
BIMKERN_INLINE inline void multiply_columns(const LaneProduct& part, int64_t depth, int64_t columns) {
  if constexpr (kColumns > 1) {
    if (columns <= (kColumns - 1) * Register::kCount) {
      return multiply_columns<kRows, kColumns - 1, Register>(part, depth, columns);
    }
  }
  const int last = static_cast<int>(columns) - (kColumns - 1) * Register::kCount;
  multiply_tile<kRows, kColumns, Register>(part, depth, last);
}

// Takes kRows rows at a time and returns how many of all are done.
template <int kRows, typename Register>
BIMKERN_INLINE inline int64_t multiply_rows(const LaneProduct& args, int64_t begin, int64_t depth, int64_t column) {
  constexpr int64_t kWidth = Register::kRegisters * Register::kCount;
  for (; begin + kRows <= args.rows; begin += kRows) {
    const int64_t columns = std::min(kWidth, args.columns - column);
    multiply_columns<kRows, Register::kRegisters, Register>(args.at(begin, column), depth, columns);
  }
  return begin;
}

template <Simd kSimd>
BIMKERN_INLINE inline void multiply(SimdTag<kSimd>, LaneProduct args) {
  using Register = Lanes<kSimd>;
  int64_t left = args.depth;
  do {  // once where depth is 0, too
    const int64_t depth = std::min(kDepth, left);
    for (int64_t column = 0; column < args.columns; column += Register::kRegisters * Register::kCount) {
      int64_t done = multiply_rows<6, Register>(args, 0, depth, column);
      done = multiply_rows<3, Register>(args, done, depth, column);
      multiply_rows<1, Register>(args, done, depth, column);
    }
    args.left += depth * args.left_depth_stride;
    args.right += depth * args.right_stride;
    args.before = args.out;
    args.before_stride = args.out_stride;
    left -= depth;
  } while (left > 0);
}

// Rows side by side, for those far apart compete for few places of a cache; zeros up to a row of padded(columns).
BIMKERN_INLINE inline void pack_rows(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to) {
  for (int64_t r = 0; r < rows; ++r, to += padded(columns)) {
    std::copy_n(from + r * stride, columns, to);
    std::fill(to + columns, to + padded(columns), 0.0f);
  }
}

}  // namespace bimkern
