// restore_tokens and its gradients: the decoder's input, every visible token back in its place and the mask token
// elsewhere, plus their positions, behind the prefix. Letters and strides: keep.h.
#pragma once

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/keep.h"

namespace bimkern {

struct RestoreTokens {
  DType dtype;  // of visible, mask_token, pos and out
  TokenSizes size;
  Keep keep;
  const void* visible;  // [B, R+K, D]
  int64_t visible_image_stride;
  int64_t visible_token_stride;
  const void* mask_token;  // [D]
  const void* pos;         // [N, D], null: nothing is added
  int64_t pos_token_stride;
  void* out;  // [B, R+N, D]
};

struct RestoreTokensBwd {
  DType dtype;  // of all gradients
  TokenSizes size;
  Keep keep;
  const void* grad_out;  // [B, R+N, D]
  int64_t grad_image_stride;
  int64_t grad_token_stride;
  void* grad_visible;     // [B, R+K, D]
  void* grad_mask_token;  // [D]
  void* grad_pos;         // [N, D], null: not wanted
  void* masked_sums;      // [N, D], scratch in the arithmetic type of dtype: sums over the images that mask a token
  int32_t* positions = nullptr;  // [B, N], scratch of restore_tokens_bwd_cuda
};

// CPU. The values of keep are checked first; throws Error.
void restore_tokens(const RestoreTokens& args, const Parallel& parallel, Simd simd);
void restore_tokens_bwd(const RestoreTokensBwd& args, const Parallel& parallel, Simd simd);

// CUDA, on the current device; stream is a cudaStream_t. An id out of range makes NaN of all N tokens of its image, a
// repeated one of its token; both of the image's K rows of grad_visible, of all grad_pos, and of grad_mask_token where
// K < N. Rows of the prefix are right. K is at most N.
void restore_tokens_cuda(const RestoreTokens& args, void* stream);
void restore_tokens_bwd_cuda(const RestoreTokensBwd& args, void* stream);

}  // namespace bimkern
