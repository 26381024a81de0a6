// The stages of match_predict at scales 1 and 1/2, and of match_loss there: squares of tokens pooled, and products with
// one narrow side (the values of a prediction), for which the library's are slow.
//
// Letters: B images of N = rows x columns tokens, D width. Strides in elements.
#pragma once

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace bimkern {

struct MatchPool {
  DType dtype;         // of out
  DType tokens_dtype;  // float64 if dtype is, and only then; so are sums, else float32
  int64_t images;
  int64_t rows;     // even
  int64_t columns;  // even
  int64_t width;
  const void*
      weight;  // [B, N / 4] in the type of the sums, or null: cells of weight zero are not read, and become zero
  const void* tokens;  // [B, N, D]
  int64_t image_stride;
  int64_t token_stride;
  void* out;  // [B, N / 4, D]
};

struct MatchPoolBwd {
  DType dtype;         // of grad
  DType tokens_dtype;  // of grad_tokens
  int64_t images;
  int64_t rows;
  int64_t columns;
  int64_t width;
  const void* grad;   // [B, N / 4, D]
  void* grad_tokens;  // [B, N, D]
};

// out = left @ right, float32, by fused multiply-adds in an order that depends on nothing but depth.
struct MatchProduct {
  int64_t rows;
  int64_t depth;
  int64_t columns;
  const float* left;  // [rows, depth], any strides
  int64_t left_row_stride;
  int64_t left_depth_stride;
  const float* right;  // [depth, columns]
  int64_t right_stride;
  const float* bias;  // [columns], or null
  bool add;           // to what is in out; else to bias
  float* out;         // [rows, columns]
  int64_t out_stride;
};

// CPU.
void match_pool(const MatchPool& args, const Parallel& parallel, Simd simd);
void match_pool_bwd(const MatchPoolBwd& args, const Parallel& parallel, Simd simd);
void match_product(const MatchProduct& args, const Parallel& parallel, Simd simd);

}  // namespace bimkern
