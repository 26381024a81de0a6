// What the bindings of losses share: predictions [B, N, P], weights [B, N], a scalar denominator; and images.
#pragma once

#include <string>

#include "ops/loss_rows.h"
#include "ops/pixel_targets.h"

#include "bridge.h"

namespace bimkern {

// The public Python functions check for users; here only what the kernels would read or write beyond.
inline void check_loss_scalar(const char* op, const char* name, const Tensor& scalar, const Tensor& weight) {
  STD_TORCH_CHECK(scalar.dim() == 0 && scalar.is_cpu() && scalar.scalar_type() == weight.scalar_type(), op, ": ", name,
                  " must be a scalar of the dtype of weight");
}

// pred has contiguous rows.
inline LossRows loss_rows(const char* op, const Tensor& pred, const Tensor& weight, const Tensor& denominator,
                          bool absolute) {
  STD_TORCH_CHECK(pred.dim() == 3 && weight.dim() == 2 && weight.size(0) == pred.size(0) &&
                      weight.size(1) == pred.size(1) && weight.is_cpu(),
                  op, ": pred must be [B, N, P] and weight [B, N]");
  LossRows rows{};
  rows.pred_dtype = dtype_of(op, pred);
  rows.dtype = dtype_of(op, weight);
  STD_TORCH_CHECK(rows.dtype == DType::kFloat32 || rows.dtype == DType::kFloat64, op,
                  ": weight must be float32 or float64");
  check_loss_scalar(op, "denominator", denominator, weight);
  rows.kind = absolute ? LossKind::kL1 : LossKind::kL2;
  rows.images = pred.size(0);
  rows.tokens = pred.size(1);
  rows.length = pred.size(2);
  rows.pred = pred.const_data_ptr();
  rows.pred_image_stride = pred.stride(0);
  rows.pred_token_stride = pred.stride(1);
  rows.weight = weight.const_data_ptr();
  rows.weight_image_stride = weight.stride(0);
  rows.weight_token_stride = weight.stride(1);
  rows.denominator = denominator.const_data_ptr();
  return rows;
}

// The loss, and its scratch.
struct NewLoss {
  Tensor loss;
  Tensor row_losses;

  explicit NewLoss(const Tensor& weight)
      : loss(torch::stable::new_empty(weight, {})),
        row_losses(torch::stable::new_empty(weight, {weight.size(0), weight.size(1)})) {}
  LossSum sum() { return LossSum{loss.mutable_data_ptr(), row_losses.mutable_data_ptr()}; }
};

// mean and std are contiguous; result is the type of the vectors.
inline Patches patches_of(const char* op, const Tensor& images, const std::optional<Tensor>& mean,
                          const std::optional<Tensor>& std, int64_t patch, bool normalize,
                          torch::headeronly::ScalarType result) {
  STD_TORCH_CHECK(
      images.dim() == 4 && images.is_cpu() && patch > 0 && images.size(2) % patch == 0 && images.size(3) % patch == 0,
      op, ": images must be [B, C, H, W] with H and W multiples of patch=", patch);
  Patches patches{};
  const bool is_bytes = images.scalar_type() == torch::headeronly::ScalarType::Byte;
  patches.dtype = is_bytes ? DType::kUInt8 : dtype_of(op, images);
  patches.images = images.size(0);
  patches.channels = images.size(1);
  patches.rows = images.size(2) / patch;
  patches.columns = images.size(3) / patch;
  patches.patch = patch;
  patches.pixels = images.const_data_ptr();
  patches.image_stride = images.stride(0);
  patches.channel_stride = images.stride(1);
  patches.row_stride = images.stride(2);
  patches.column_stride = images.stride(3);
  for (const std::optional<Tensor>& values : {mean, std}) {
    STD_TORCH_CHECK(!values || (values->dim() == 1 && values->size(0) == images.size(1) && values->is_contiguous() &&
                                values->is_cpu() && values->scalar_type() == result),
                    op, ": mean and std must be [C], contiguous, of the type that is computed in");
  }
  patches.mean = mean ? mean->const_data_ptr() : nullptr;
  patches.std = std ? std->const_data_ptr() : nullptr;
  patches.normalize = normalize;
  return patches;
}

}  // namespace bimkern
