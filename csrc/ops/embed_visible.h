// The two ends of embed_visible; the matrix product between them is the library's. Letters and strides: keep.h, and
// C channels, p patch size, H W pixels.
//
// visible_patches: [B, C, H, W] pixels -> the kept patches, normalized, as rows for the product [B, K, C*p*p].
// add_embeddings: that product -> tokens. Adds bias and positions, and puts the prefix in front.
#pragma once

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/keep.h"
#include "ops/pixels.h"

namespace bimkern {

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

// CUDA, on the current device; stream is a cudaStream_t. An id out of range makes NaN of its row.
void visible_patches_cuda(const VisiblePatches& args, void* stream);
void add_embeddings_cuda(const AddEmbeddings& args, void* stream);

}  // namespace bimkern
