// gather_tokens and its two gradients: the visible tokens of each image, behind its prefix, plus their positions.
//
// Letters: B images, R prefix tokens, N tokens, K kept tokens, D width. All strides are in elements; D has stride 1
// wherever a pointer has no stride for it, and a pointer without strides is contiguous. Pointers into empty tensors may
// be null.
#pragma once

#include "core/common.h"
#include "core/dtype.h"
#include "core/parallel.h"

namespace bimkern {

// Which tokens stay. The values ascend within an image and lie in [0, N).
struct Keep {
  const int64_t* ids;  // [B, K]
  int64_t image_stride;
  int64_t token_stride;
};

struct TokenSizes {
  int64_t images;  // B
  int64_t prefix;  // R
  int64_t tokens;  // N
  int64_t kept;    // K
  int64_t width;   // D
};

struct GatherTokens {
  DType dtype;  // of tokens, pos and out
  TokenSizes size;
  Keep keep;
  const void* tokens;  // [B, R+N, D]
  int64_t tokens_image_stride;
  int64_t tokens_token_stride;
  const void* pos;  // [N, D], null: nothing is added
  int64_t pos_token_stride;
  void* out;  // [B, R+K, D]
};

struct GatherTokensBwd {
  DType dtype;  // of grad_out and the result
  TokenSizes size;
  Keep keep;
  const void* grad_out;  // [B, R+K, D]
  int64_t grad_image_stride;
  int64_t grad_token_stride;
  void* result;  // gather_tokens_bwd: d tokens, [B, R+N, D]; gather_tokens_bwd_pos: d pos, [N, D]
};

// CPU. The values of keep are checked first; throws Error.
void gather_tokens(const GatherTokens& args, const Parallel& parallel);
void gather_tokens_bwd(const GatherTokensBwd& args, const Parallel& parallel);
void gather_tokens_bwd_pos(const GatherTokensBwd& args, const Parallel& parallel);

// CUDA, on the current device; stream is a cudaStream_t. The values of keep are not checked.
void gather_tokens_cuda(const GatherTokens& args, void* stream);
void gather_tokens_bwd_cuda(const GatherTokensBwd& args, void* stream);
void gather_tokens_bwd_pos_cuda(const GatherTokensBwd& args, void* stream);

// Index of the first of count ascending ids that is not below id; count if all are.
BIMKERN_HD int64_t lower_bound(const int64_t* ids, int64_t stride, int64_t count, int64_t id) {
  int64_t first = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    const bool below = ids[(first + half) * stride] < id;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  return first;
}

// Place of id among count ascending ids; -1 if it is not there.
BIMKERN_HD int64_t find(const int64_t* ids, int64_t stride, int64_t count, int64_t id) {
  const int64_t place = lower_bound(ids, stride, count, id);
  return place < count && ids[place * stride] == id ? place : -1;
}

}  // namespace bimkern
