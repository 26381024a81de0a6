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
  const void* mask;  // [B, H * W]
  int64_t image_stride;
  int64_t token_stride;
  void* out;  // [B, (H / s * r) * (W / s * r)]
};

// The mean over the square whose first token is given: summed row by row, then divided, so that all devices round
// alike.
template <typename T>
BIMKERN_HD T mean_of_square(const T* first, const ScaleMask& args) {
  using A = Arithmetic<T>;
  typename A::type sum{0};
  for (int64_t row = 0; row < args.average; ++row) {
    typename A::type row_sum{0};
    for (int64_t column = 0; column < args.average; ++column) {
      row_sum += A::load(first[(row * args.columns + column) * args.token_stride]);
    }
    sum += row_sum;
  }
  return A::store(sum / static_cast<typename A::type>(args.average * args.average));
}

// CPU.
void scale_mask(const ScaleMask& args, const Parallel& parallel);

// CUDA, on the current device; stream is a cudaStream_t.
void scale_mask_cuda(const ScaleMask& args, void* stream);

}  // namespace bimkern
