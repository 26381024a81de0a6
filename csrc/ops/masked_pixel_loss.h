// masked_pixel_loss and its gradient: masked_loss against the pixels of the images, which are never laid out in
// patches. Letters: loss_rows.h and pixel_targets.h; N is the number of patches, P their length.
#pragma once

#include "ops/loss_rows.h"
#include "ops/pixel_targets.h"

namespace bimkern {

// CPU. Images, mean and std are as for pixel_targets with the type of the loss as its result's.
void masked_pixel_loss(const LossRows& rows, const Patches& patches, const LossSum& sum, const Parallel& parallel,
                       Simd simd);
void masked_pixel_loss_bwd(const LossRows& rows, const Patches& patches, const LossGrad& grad, const Parallel& parallel,
                           Simd simd);

}  // namespace bimkern
