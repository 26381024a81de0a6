// keep_to_mask: 1 where a token is masked, 0 where it is kept. Letters and strides: keep.h.
#pragma once

#include "core/parallel.h"
#include "ops/keep.h"

namespace bimkern {

struct KeepToMask {
  int64_t images;  // B
  int64_t tokens;  // N
  int64_t kept;    // K
  Keep keep;
  float* mask;  // [B, N]
};

// CPU. The values of keep are checked first; throws Error.
void keep_to_mask(const KeepToMask& args, const Parallel& parallel);

// CUDA, on the current device; stream is a cudaStream_t. An id out of range makes NaN of its image.
void keep_to_mask_cuda(const KeepToMask& args, void* stream);

}  // namespace bimkern
