// pixel_targets: the pixels of every patch as a vector, channel fastest, raw or brought to zero mean and unit variance.
//
// Letters: B images, C channels, p patch size, N patches in raster order, P = p*p*C. All strides count elements.
#pragma once

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace bimkern {

constexpr double kPatchEps = 1e-6;  // added to a variance

// Images, and what is to become of their patches.
struct Patches {
  DType dtype;  // of the images: any, also kUInt8, whose values count as 0 to 1
  int64_t images;
  int64_t channels;
  int64_t rows;  // of patches
  int64_t columns;
  int64_t patch;       // p
  const void* pixels;  // [B, C, rows * p, columns * p]
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
  const void* mean;  // [C], of the type of the result; null: 0
  const void* std;   // [C], of the type of the result; null: 1
  bool normalize;    // subtract a patch's mean, divide by the root of its unbiased variance plus kPatchEps

  int64_t count() const { return images * rows * columns; }
  int64_t length() const { return patch * patch * channels; }
};

struct PixelTargets {
  DType dtype;  // of out: float32, float64
  Patches patches;
  void* out;  // [B, N, P]
};

// CPU.
void pixel_targets(const PixelTargets& args, const Parallel& parallel, Simd simd);

}  // namespace bimkern
