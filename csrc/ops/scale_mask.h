// scale_mask: a mask of a token grid at another scale, every value a mean over a square of tokens, repeated over a
// square. Letters: B images, N = H x W tokens, s side of the averaged square, r side of the repeated one. Strides in
// elements.
#pragma once

#include "core/dtype.h"
#include "core/parallel.h"

namespace bimkern {

struct ScaleMask {
  DType dtype;  // of mask and out
  int64_t images;
  int64_t rows;      // H, a multiple of s
  int64_t columns;   // W, a multiple of s
  int64_t average;   // s
  int64_t repeat;    // r
  const void* mask;  // [B, H * W], tokens with stride 1
  int64_t image_stride;
  void* out;  // [B, (H / s * r) * (W / s * r)]
};

// The mean over the square whose first token is given: sums of rows, their sum, then the division, so that all devices
// round alike.
template <typename T>
BIMKERN_HD T mean_of_square(const T* first, int64_t columns, int64_t side) {
  using A = Arithmetic<T>;
  typename A::type sum{0};
  for (int64_t row = 0; row < side; ++row) {
    typename A::type row_sum{0};
    for (int64_t column = 0; column < side; ++column) {
      row_sum += A::load(first[row * columns + column]);
    }
    sum += row_sum;
  }
  return A::store(sum / static_cast<typename A::type>(side * side));
}

// CPU.
void scale_mask(const ScaleMask& args, const Parallel& parallel);

// CUDA, on the current device; stream is a cudaStream_t.
void scale_mask_cuda(const ScaleMask& args, void* stream);

}  // namespace bimkern
