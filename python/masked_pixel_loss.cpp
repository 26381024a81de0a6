// torch ops masked_pixel_loss and masked_pixel_loss_bwd on the CPU; kernel: ops/masked_loss.h, with patches as targets.
// bimkern/ops/_triton has those on CUDA. Schemas: bimkern/ops/masked_pixel_loss.py.
#include "ops/masked_loss.h"

#include "loss.h"

namespace bimkern {
namespace {

void check_patches(const char* op, const Patches& patches, const LossRows& rows) {
  STD_TORCH_CHECK(
      patches.images == rows.images && patches.rows * patches.columns == rows.tokens && patches.length() == rows.length,
      op, ": pred must be [B, N, P], a row for every patch of the images");
}

Tensor masked_pixel_loss_op(const Tensor& pred, const Tensor& images, const Tensor& weight, const Tensor& denominator,
                            const std::optional<Tensor>& mean, const std::optional<Tensor>& std, int64_t patch,
                            bool normalize, bool absolute) {
  const char* op = "masked_pixel_loss";
  const Tensor pred_rows = with_contiguous_rows(pred);
  const LossRows rows = loss_rows(op, pred_rows, weight, denominator, absolute);
  const Patches patches = patches_of(op, images, mean, std, patch, normalize, weight.scalar_type());
  check_patches(op, patches, rows);
  NewLoss result(weight);
  masked_loss(rows, patches, result.sum(), torch_pool(), simd_in_use());
  return result.loss;
}

Tensor masked_pixel_loss_bwd_op(const Tensor& grad, const Tensor& pred, const Tensor& images, const Tensor& weight,
                                const Tensor& denominator, const std::optional<Tensor>& mean,
                                const std::optional<Tensor>& std, int64_t patch, bool normalize, bool absolute) {
  const char* op = "masked_pixel_loss_bwd";
  const Tensor pred_rows = with_contiguous_rows(pred);
  const LossRows rows = loss_rows(op, pred_rows, weight, denominator, absolute);
  const Patches patches = patches_of(op, images, mean, std, patch, normalize, weight.scalar_type());
  check_patches(op, patches, rows);
  check_loss_scalar(op, "grad", grad, weight);
  Tensor grad_pred = make_empty(pred, {pred.size(0), pred.size(1), pred.size(2)});
  masked_loss_bwd(rows, patches, LossGrad{grad.const_data_ptr(), grad_pred.mutable_data_ptr()}, torch_pool(),
                  simd_in_use());
  return grad_pred;
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) {
  library.impl("masked_pixel_loss", TORCH_BOX(&bimkern::masked_pixel_loss_op));
  library.impl("masked_pixel_loss_bwd", TORCH_BOX(&bimkern::masked_pixel_loss_bwd_op));
}
