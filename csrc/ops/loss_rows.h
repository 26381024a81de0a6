// What losses take: prediction rows with their weights, and target rows, or the patches that these are made of.
//
// Letters: B images, N tokens, P values a token. All strides count elements. Arithmetic is done in `dtype`. Rows of
// weight zero do not count: neither they nor their targets are read.
#pragma once

#include <variant>

#include "core/dtype.h"
#include "ops/pixel_targets.h"

namespace bimkern {

enum class LossKind : int32_t { kL2, kL1 };

struct LossRows {
  DType pred_dtype;  // any
  DType dtype;       // of weight, denominator and the loss: float32 or float64
  LossKind kind;
  int64_t images;
  int64_t tokens;
  int64_t length;    // P
  const void* pred;  // [B, N, P], P contiguous
  int64_t pred_image_stride;
  int64_t pred_token_stride;
  const void* weight;  // [B, N]
  int64_t weight_image_stride;
  int64_t weight_token_stride;
  const void* denominator;  // scalar; zero makes loss and gradients zero

  int64_t count() const { return images * tokens; }
};

struct TargetRows {
  DType dtype;         // any
  const void* target;  // [B, N, P], P contiguous
  int64_t image_stride;
  int64_t token_stride;
};

// Patches: the target is pixel_targets of them, in the type of the loss, N of them of length P.
using Targets = std::variant<TargetRows, Patches>;

// Where the loss goes.
struct LossSum {
  void* loss;        // scalar
  void* row_losses;  // [B, N], scratch of the same type
};

// Where gradients come from and go.
struct LossGrad {
  const void* grad_loss;  // scalar, of the type of the loss
  void* grad_pred;        // [B, N, P], dense, of the type of pred
};

}  // namespace bimkern
