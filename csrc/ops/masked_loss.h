// masked_loss and its gradient: sum(weight * mean_P error(pred - target)) / denominator. Letters: loss_rows.h.
#pragma once

#include "ops/loss_rows.h"

namespace bimkern {

struct TargetRows {
  DType dtype;         // any
  const void* target;  // [B, N, P], P contiguous
  int64_t image_stride;
  int64_t token_stride;
};

// CPU.
void masked_loss(const LossRows& rows, const TargetRows& target, const LossSum& sum, const Parallel& parallel,
                 Simd simd);
void masked_loss_bwd(const LossRows& rows, const TargetRows& target, const LossGrad& grad, const Parallel& parallel,
                     Simd simd);

}  // namespace bimkern
