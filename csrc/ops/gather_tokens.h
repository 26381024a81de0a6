// gather_tokens and its two gradients: the visible tokens of each image, behind its prefix, plus their positions.
// Letters and strides: keep.h. Images may have several masks, M: B counts every image once per mask, all images of one
// mask behind those of the one before, and image i of keep is image i % (B/M) of tokens.
#pragma once

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/keep.h"

namespace bimkern {

struct GatherTokens {
  DType dtype;  // of tokens, pos and out
  TokenSizes size;
  Keep keep;
  const void* tokens;  // [B/M, R+N, D]
  int64_t tokens_image_stride;
  int64_t tokens_token_stride;
  const void* pos;  // [N, D], null: nothing is added
  int64_t pos_token_stride;
  void* out;          // [B, R+K, D]
  int64_t masks = 1;  // M, divides B
};

struct GatherTokensBwd {
  DType dtype;  // of grad_out and the result
  TokenSizes size;
  Keep keep;
  const void* grad_out;  // [B, R+K, D]
  int64_t grad_image_stride;
  int64_t grad_token_stride;
  void* result;       // gather_tokens_bwd: d tokens, [B/M, R+N, D]; gather_tokens_bwd_pos: d pos, [N, D]
  int64_t masks = 1;  // M, divides B; for gather_tokens_bwd
  int32_t* positions =
      nullptr;  // [B, N], scratch of gather_tokens_bwd_pos_cuda, and of gather_tokens_bwd_cuda if M > 1
};

// CPU. The values of keep are checked first; throws Error.
void gather_tokens(const GatherTokens& args, const Parallel& parallel, Simd simd);
void gather_tokens_bwd(const GatherTokensBwd& args, const Parallel& parallel, Simd simd);
void gather_tokens_bwd_pos(const GatherTokensBwd& args, const Parallel& parallel, Simd simd);

// CUDA, on the current device; stream is a cudaStream_t. An id out of range makes NaN of its row of out, and of the
// rows of all N tokens of its image in d tokens; a repeated one of its token's row there, or of all N if M > 1; both of
// all d pos.
void gather_tokens_cuda(const GatherTokens& args, void* stream);
void gather_tokens_bwd_cuda(const GatherTokensBwd& args, void* stream);
void gather_tokens_bwd_pos_cuda(const GatherTokensBwd& args, void* stream);

}  // namespace bimkern
