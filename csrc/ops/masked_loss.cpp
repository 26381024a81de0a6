// CPU kernels of masked_loss.h, parallel over rows and bound by memory.
//
// forward: reads predictions and targets of the rows that count. Each row's error is summed in fixed lanes, the rows'
// errors in float64 by one thread: the same bits for any number of threads on any instruction set.
// backward: reads the same, writes the whole gradient.
#include "ops/masked_loss.h"

namespace bimkern {
namespace {

template <typename A>
WideRows<A> target_rows(const LossRows& rows, const TargetRows& target) {
  return WideRows<A>(target.dtype, target.target, rows.tokens, rows.length, target.image_stride, target.token_stride);
}

}  // namespace

void masked_loss(const LossRows& rows, const TargetRows& target, const LossSum& sum, const Parallel& parallel,
                 Simd simd) {
  dispatch_wide(rows.dtype, [&](auto wide) {
    using A = decltype(wide);
    sum_rows<A>(rows, sum, [&] { return target_rows<A>(rows, target); }, parallel, simd);
  });
}

void masked_loss_bwd(const LossRows& rows, const TargetRows& target, const LossGrad& grad, const Parallel& parallel,
                     Simd simd) {
  dispatch_wide(rows.dtype, [&](auto wide) {
    using A = decltype(wide);
    differentiate_rows<A>(rows, grad, [&] { return target_rows<A>(rows, target); }, parallel, simd);
  });
}

}  // namespace bimkern
