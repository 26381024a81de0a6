// The matrices of one window and head: packed from rows of tokens and written back, and the softmax of their rows. To
// be called inside of vectorized().
//
// Letters: n tokens of the window, d channels of the head.
#pragma once

#include <algorithm>
#include <vector>

#include "core/gelu.h"
#include "core/product.h"
#include "core/rows.h"
#include "ops/window_plans.h"

namespace bimkern {

constexpr int64_t whole_rows(int64_t n) { return ceil_div<int64_t>(n, kTileRows) * kTileRows; }
constexpr int64_t whole_columns(int64_t n) { return ceil_div<int64_t>(n, kTileColumns) * kTileColumns; }

// Memory that vectors are loaded from whole.
template <typename A>
class Buffer {
 public:
  explicit Buffer(int64_t count) : memory_(count + kAlignment / sizeof(A)) {}

  A* data() {
    const auto start = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (ceil_div<uintptr_t>(start, kAlignment) * kAlignment - start) / sizeof(A);
  }

 private:
  static constexpr uintptr_t kAlignment = 64;
  std::vector<A> memory_;
};

// Rows of one head of an image in [B, T, ...]: row i begins at `at` + i * stride; what is wanted next is `ahead` of it.
struct HeadRows {
  DType dtype;
  const void* data;
  int64_t at;
  int64_t stride;
  int64_t ahead;
};

// Sizes of a window's matrices: n tokens, d channels.
struct Sizes {
  int64_t tokens;
  int64_t width;
  int64_t rows;      // whole_rows(n)
  int64_t columns;   // whole_columns(n)
  int64_t channels;  // whole_columns(d)
};

// out [n, d] = factor * rows of the window's tokens, and zero up to whole rows and columns.
template <typename Set, typename A>
BIMKERN_INLINE inline void pack(Set set, const HeadRows& from, const Window& window, const Sizes& size, A factor,
                                A* out) {
  for (int64_t i = 0; i < size.tokens; ++i, out += size.channels) {
    const int64_t next = from.at + window.tokens[i] * from.stride + from.ahead;
    __builtin_prefetch(static_cast<const char*>(from.data) + next * bytes_of(from.dtype));
    __builtin_prefetch(static_cast<const char*>(from.data) + next * bytes_of(from.dtype) + 64);
    widen_row(set, from.dtype, from.data, from.at + window.tokens[i] * from.stride, size.width, out);
    for (int64_t d = 0; d < (factor == 1 ? 0 : size.width); ++d) {
      out[d] *= factor;
    }
    std::fill(out + size.width, out + size.channels, A{0});
  }
  std::fill_n(out, (size.rows - size.tokens) * size.channels, A{0});
}

// out [d, n] of rows [n, d], and zero up to whole columns.
template <typename A>
BIMKERN_INLINE inline void transpose(const A* __restrict rows, const Sizes& size, A* __restrict out) {
  std::fill_n(out, size.width * size.columns, A{0});
  for (int64_t i = 0; i < size.tokens; ++i) {
    for (int64_t d = 0; d < size.width; ++d) {
      out[d * size.columns + i] = rows[i * size.channels + d];
    }
  }
}

// Writes factor * row to a row of any type.
template <typename Set, typename A>
BIMKERN_INLINE inline void unpack_row(Set set, A* row, A factor, int64_t width, DType dtype, void* out, int64_t at) {
  for (int64_t d = 0; d < width; ++d) {
    row[d] *= factor;
  }
  store_row(set, static_cast<const A*>(row), width, dtype, out, at);
}

template <typename A>
BIMKERN_INLINE inline A largest_of(const A* row, int64_t columns) {
  A lanes[kTileColumns];
  std::copy_n(row, kTileColumns, lanes);
  for (int64_t j = kTileColumns; j < columns; j += kTileColumns) {
    for (int k = 0; k < kTileColumns; ++k) {
      lanes[k] = row[j + k] > lanes[k] ? row[j + k] : lanes[k];
    }
  }
  return *std::max_element(lanes, lanes + kTileColumns);
}

// The sum of f(j), which is called once for each column.
template <typename A, typename F>
BIMKERN_INLINE inline A sum_over(int64_t columns, const F f) {
  A lanes[kTileColumns] = {};
  for (int64_t j = 0; j < columns; j += kTileColumns) {
    for (int k = 0; k < kTileColumns; ++k) {
      lanes[k] += f(j + k);
    }
  }
#pragma GCC unroll 4
  for (int half = kTileColumns / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) {
      lanes[k] += lanes[k + half];
    }
  }
  return lanes[0];
}

// row: logits, become exp(logit - subtracted); returns their sum.
template <typename A>
BIMKERN_INLINE inline A exponentiate(A* row, A subtracted, int64_t columns) {
  return sum_over<A>(columns, [=](int64_t j) BIMKERN_INLINE { return row[j] = exp_of_negative(row[j] - subtracted); });
}

// grads: of probabilities, become those of logits. sum: of the probabilities, which share the rounding of a large
// logsumexp, so that it is not quite one.
template <typename A>
BIMKERN_INLINE inline void softmax_bwd(const A* __restrict probabilities, A sum, A* __restrict grads, int64_t columns) {
  const A along = sum_over<A>(columns, [=](int64_t j) BIMKERN_INLINE { return probabilities[j] * grads[j]; }) / sum;
  for (int64_t j = 0; j < columns; ++j) {
    grads[j] = probabilities[j] * (grads[j] - along);
  }
}

}  // namespace bimkern
