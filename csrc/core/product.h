// Products of small matrices that lie in a core's cache, to be called inside of vectorized().
//
// Each element sums chains of kChain fused multiply-adds over the depth, in its order: the same bits on every
// instruction set and in every shape, rounded no worse than a library's product. The baseline of x86 has no such
// instruction and calls the C library's.
//
// Not the product of core/lane_product.h: its chains are longer, its shapes any, and it is for float32 alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/simd.h"

namespace bimkern {

// Whole tiles only: what a product's rows and columns are multiples of.
constexpr int kTileRows = 4;
constexpr int kTileColumns = 16;
constexpr int64_t kChain = 32;

template <typename A>
struct Matrix {
  A* data;
  int64_t row;         // strides, in elements
  int64_t column = 1;  // another one for the left factor alone

  Matrix at(int64_t i, int64_t j) const { return {data == nullptr ? data : data + i * row + j * column, row, column}; }
};

// c = start + a @ b, over a depth of one chain.
template <typename A>
BIMKERN_INLINE inline void product_tile(Matrix<const A> a, Matrix<const A> b, Matrix<const A> start, Matrix<A> c,
                                        int64_t depth) {
  A sums[kTileRows][kTileColumns] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const A* line = b.data + k * b.row;
#pragma GCC unroll 4
    for (int i = 0; i < kTileRows; ++i) {
      const A factor = a.data[i * a.row + k * a.column];
      for (int j = 0; j < kTileColumns; ++j) {
        sums[i][j] = std::fma(factor, line[j], sums[i][j]);
      }
    }
  }
  if (start.data != nullptr) {
    for (int i = 0; i < kTileRows; ++i) {
      for (int j = 0; j < kTileColumns; ++j) {
        sums[i][j] += start.data[i * start.row + j];
      }
    }
  }
  for (int i = 0; i < kTileRows; ++i) {
    for (int j = 0; j < kTileColumns; ++j) {
      c.data[i * c.row + j] = sums[i][j];
    }
  }
}

// c [rows, columns] = start + a [rows, depth] @ b [depth, columns]; start may be c, or null for zero.
template <typename A>
BIMKERN_INLINE inline void product(Matrix<const A> a, Matrix<const A> b, Matrix<const A> start, Matrix<A> c,
                                   int64_t rows, int64_t columns, int64_t depth) {
  for (int64_t i = 0; i < rows; i += kTileRows) {
    for (int64_t j = 0; j < columns; j += kTileColumns) {
      const Matrix<A> tile = c.at(i, j);
      product_tile(a.at(i, 0), b.at(0, j), start.at(i, j), tile, std::min(kChain, depth));
      for (int64_t k = kChain; k < depth; k += kChain) {
        product_tile(a.at(i, k), b.at(k, j), {tile.data, tile.row, tile.column}, tile, std::min(kChain, depth - k));
      }
    }
  }
}

}  // namespace bimkern
