// The two ends of embed_visible; the matrix product between them is the library's. Letters and strides: keep.h, and
// C channels, p patch size, H W pixels.
//
// visible_patches: [B, C, H, W] pixels -> the kept patches, normalised, as rows for the product [B, K, C*p*p].
// add_embeddings: that product -> tokens. Adds bias and positions, and puts the prefix in front.
#pragma once

#include <type_traits>

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/keep.h"

namespace bimkern {

// What patches are normalised in: float32, or float64 on the way to a product in float64.
template <typename T>
using Normal = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Takes pixels to (pixel - mean) / std, with bytes counting as 0 to 1, by one subtraction and one product per pixel.
// That is as exact as dividing twice, which takes longer than all else, and the same on every device.
template <typename A>
struct Affine {
  A offset;
  A scale;
};

// a * b, rounded before anything is added to it.
BIMKERN_HD float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

BIMKERN_HD double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// mean and std of the channels, null: 0 and 1.
template <typename From, typename A>
BIMKERN_HD Affine<A> normalisation(const A* mean, const A* std, int64_t channel) {
  const A full = std::is_same_v<From, uint8_t> ? A{255} : A{1};
  return Affine<A>{mean == nullptr ? A{0} : rounded_product(full, mean[channel]),
                   A{1} / (std == nullptr ? full : rounded_product(full, std[channel]))};
}

template <typename From, typename A>
BIMKERN_HD A normalised(From pixel, Affine<A> affine) {
  return (static_cast<A>(Arithmetic<From>::load(pixel)) - affine.offset) * affine.scale;
}

struct VisiblePatches {
  DType image_dtype;  // of images: any, also kUInt8
  DType dtype;        // of out
  TokenSizes size;    // width is C*p*p, tokens is H/p * W/p
  Keep keep;
  int64_t patch;       // p
  int64_t columns;     // W/p
  const void* images;  // [B, C, H, W]
  int64_t image_stride;
  int64_t channel_stride;
  int64_t row_stride;
  int64_t column_stride;
  const void* mean;  // [C], Normal of dtype; null: 0
  const void* std;   // [C], Normal of dtype; null: 1
  void* out;         // [B, K, C*p*p]
};

struct AddEmbeddings {
  DType product_dtype;  // of product
  DType dtype;          // of everything else: float32 or float64
  TokenSizes size;
  Keep keep;            // read for pos alone
  const void* product;  // [B, K, D]
  const void* bias;     // [D]
  const void* pos;      // [N, D], null: nothing is added
  int64_t pos_token_stride;
  const void* prefix;  // [R, D]
  int64_t prefix_token_stride;
  void* out;  // [B, R+K, D]
};

// CPU. The values of keep are checked before they are used; throws Error.
void visible_patches(const VisiblePatches& args, const Parallel& parallel, Simd simd);
void add_embeddings(const AddEmbeddings& args, const Parallel& parallel, Simd simd);

// CUDA, on the current device; stream is a cudaStream_t. The values of keep are not checked.
void visible_patches_cuda(const VisiblePatches& args, void* stream);
void add_embeddings_cuda(const AddEmbeddings& args, void* stream);

}  // namespace bimkern
