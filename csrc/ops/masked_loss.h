// masked_loss and its gradient: sum(weight * mean_P error(pred - target)) / denominator. Letters: loss_rows.h. With
// patches for a target it is masked_pixel_loss, and they are never laid out.
#pragma once

#include "core/parallel.h"
#include "core/simd.h"
#include "ops/loss_rows.h"

namespace bimkern {

// CPU.
void masked_loss(const LossRows& rows, const Targets& targets, const LossSum& sum, const Parallel& parallel, Simd simd);
void masked_loss_bwd(const LossRows& rows, const Targets& targets, const LossGrad& grad, const Parallel& parallel,
                     Simd simd);

}  // namespace bimkern
