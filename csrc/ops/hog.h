// hog: histograms of oriented gradients of every channel, at several cell sizes, each cell's histogram divided by its
// norm.
//
// The cotangent of a pixel's angle, gy / gx, is the same for both directions of a line, and falls along the bins. So
// the bin is the number of bin boundaries whose cotangent it has reached: no arc tangent, and exact where pixels are
// integers, since the only boundaries that a rational cotangent can hit have cotangent 1, 0 or -1. Boundaries mirror
// each other, so those of one sign are enough.
//
// Letters: B images, C channels, H W pixels, h = H / cell, w = W / cell. All strides count elements.
#pragma once

#include <cmath>
#include <limits>

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace bimkern {

constexpr int kMaxHogBins = 36;
constexpr int kMaxHogSizes = 8;                  // that a caller may ask for
constexpr int kMaxHogLevels = 2 * kMaxHogSizes;  // a kernel may add finer ones
constexpr int kMaxHogWindow = 64;
constexpr int64_t kMaxHogPixels = int64_t{1} << 24;  // of an image, all channels: positions fit 32 bits
constexpr int kHogQuad = 4;                          // boundaries that are counted at once
constexpr float kHogEps = 1e-12f;                    // norms are at least this
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct HogBoundaries {
  int32_t bins;
  // Bits of the positive cotangents of the angles k * pi / bins, descending. Behind them -1, which nothing reaches.
  int32_t cotangent[ceil_div(kMaxHogBins / 2, kHogQuad) * kHogQuad];
};

// One cell size. Those that differ in bias share no histograms.
struct HogLevel {
  int64_t cell;
  int64_t group;  // u: a vector holds u x u cells
  float bias_x;   // added to the gradient
  float bias_y;
  // Null: only coarser levels need it. [B, h/u * w/u, C * bins * u * u]: index (c * bins + bin) * u * u + row * u +
  // column, cells in raster order.
  void* out;
};

struct Hog {
  DType dtype;      // of images: float32, float16, bfloat16, uint8
  DType out_dtype;  // float32, bfloat16
  int64_t images;   // B
  int64_t channels;
  int64_t height;  // at least 2, a multiple of window and of every cell times its group; width too
  int64_t width;
  const void* pixels;  // [B, C, H, W]
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
  int32_t bins;    // 1 to kMaxHogBins
  int32_t window;  // side of the Gaussian that weighs the pixels, tiled over the image, at most kMaxHogWindow; 0: none
  int32_t num_levels;
  HogLevel level[kMaxHogLevels];  // cells ascend
};

HogBoundaries hog_boundaries(int32_t bins);

// Values of a Gaussian with sigma = window / 2, of sum 1.
void hog_window(int32_t window, float* weights);

// The level whose histograms add up to those of level i, the coarsest there is; -1: they come from the pixels.
int32_t hog_source(const Hog& args, int32_t i);

// Cotangent of a gradient's angle.
BIMKERN_HD float hog_slope(float gx, float gy) { return gx == 0.0f ? kInfinity : gy / gx; }

// Bin of a gradient, with boundaries counted in kQuads groups of four. A gradient of zero gets some bin, NaN bin 0.
template <int kQuads>
BIMKERN_HD int32_t hog_bin(float gx, float gy, const HogBoundaries& boundaries) {
  const float slope = hog_slope(gx, gy);
  const int32_t falling = slope <= 0.0f ? 1 : 0;
  // Floats of one sign compare like their bits. Beyond the middle the order is mirrored, where a boundary that is hit
  // must not count: one unit more takes care of that.
  const int32_t steepness = (bit_cast<int32_t>(slope) & 0x7fffffff) + falling;
  int32_t reached = 0;
#ifdef __CUDACC__
#pragma unroll
#else
#pragma GCC unroll 20
#endif
  for (int k = 0; k < kQuads * kHogQuad; ++k) {
    reached += steepness <= boundaries.cotangent[k] ? 1 : 0;
  }
  return reached + falling * (boundaries.bins - 1 - 2 * reached);
}

// Length of a gradient, rounded the same on both devices.
BIMKERN_HD float hog_magnitude(float gx, float gy) {
#ifdef __CUDA_ARCH__
  return __fsqrt_rn(__fadd_rn(__fmul_rn(gx, gx), __fmul_rn(gy, gy)));
#else
  return std::sqrt(gx * gx + gy * gy);
#endif
}

// Calls f with the number of groups of four to count as a constant.
template <typename F>
void dispatch_quads(int32_t bins, const F& f) {
  const int positive = (bins - 1) / 2;
  if (positive <= 1 * kHogQuad) {
    return f(std::integral_constant<int, 1>{});
  }
  if (positive <= 2 * kHogQuad) {
    return f(std::integral_constant<int, 2>{});
  }
  return f(std::integral_constant<int, 5>{});
}

template <typename F>
void dispatch_hog_pixels(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(float16{});
    case DType::kBFloat16:
      return f(bfloat16{});
    case DType::kUInt8:
      return f(uint8_t{});
    default:
      BIMKERN_CHECK(false, "hog: images must be float32, float16, bfloat16 or uint8, got tag ",
                    static_cast<int>(dtype));
  }
}

BIMKERN_HD float pixel(float x) { return x; }
BIMKERN_HD float pixel(float16 x) { return to_float(x); }
BIMKERN_HD float pixel(bfloat16 x) { return to_float(x); }
BIMKERN_HD float pixel(uint8_t x) { return static_cast<float>(x); }

// CPU.
void hog(const Hog& args, const Parallel& parallel, Simd simd);

// CUDA, on the current device; stream is a cudaStream_t.
void hog_cuda(const Hog& args, void* stream);

}  // namespace bimkern
