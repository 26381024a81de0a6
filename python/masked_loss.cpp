// torch ops masked_loss and masked_loss_bwd on the CPU; bimkern/ops/_triton has those on CUDA. Schemas:
// bimkern/ops/masked_loss.py.
#include "ops/masked_loss.h"

#include "loss.h"

namespace bimkern {
namespace {

// target has contiguous rows.
TargetRows target_rows(const char* op, const Tensor& target, const Tensor& pred) {
  STD_TORCH_CHECK(target.dim() == 3 && target.size(0) == pred.size(0) && target.size(1) == pred.size(1) &&
                      target.size(2) == pred.size(2) && target.is_cpu(),
                  op, ": target must have the shape and device of pred");
  return TargetRows{dtype_of(op, target), target.const_data_ptr(), target.stride(0), target.stride(1)};
}

Tensor masked_loss_op(const Tensor& pred, const Tensor& target, const Tensor& weight, const Tensor& denominator,
                      bool absolute) {
  const char* op = "masked_loss";
  const Tensor pred_rows = with_contiguous_rows(pred);
  const Tensor targets = with_contiguous_rows(target);
  const LossRows rows = loss_rows(op, pred_rows, weight, denominator, absolute);
  NewLoss result(weight);
  masked_loss(rows, target_rows(op, targets, pred), result.sum(), torch_pool(), simd_in_use());
  return result.loss;
}

Tensor masked_loss_bwd_op(const Tensor& grad, const Tensor& pred, const Tensor& target, const Tensor& weight,
                          const Tensor& denominator, bool absolute) {
  const char* op = "masked_loss_bwd";
  const Tensor pred_rows = with_contiguous_rows(pred);
  const Tensor targets = with_contiguous_rows(target);
  const LossRows rows = loss_rows(op, pred_rows, weight, denominator, absolute);
  check_loss_scalar(op, "grad", grad, weight);
  Tensor grad_pred = make_empty(pred, {pred.size(0), pred.size(1), pred.size(2)});
  masked_loss_bwd(rows, target_rows(op, targets, pred), LossGrad{grad.const_data_ptr(), grad_pred.mutable_data_ptr()},
                  torch_pool(), simd_in_use());
  return grad_pred;
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) {
  library.impl("masked_loss", TORCH_BOX(&bimkern::masked_loss_op));
  library.impl("masked_loss_bwd", TORCH_BOX(&bimkern::masked_loss_bwd_op));
}
