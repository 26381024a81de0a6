// group_attention: attention among the tokens of a window, of which some are missing, with relative position bias.
//
// Letters: B images, T tokens, H heads, d channels a head, R relative positions. All strides count elements.
#pragma once

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/window_plans.h"

namespace bimkern {

struct GroupAttention {
  DType dtype;  // of qkv and out; the rest has the type of its arithmetic
  WindowPlans plans;
  int64_t images;
  int64_t heads;
  int64_t width;               // d
  int64_t relative_positions;  // R, odd: tokens i and j have bias R / 2 + positions[i] - positions[j]
  double scale;
  const void* qkv;  // [B, T, 3, H, d], rows of 3 * H * d contiguous
  int64_t image_stride;
  int64_t token_stride;
  const void* table;  // [R, H]
};

struct GroupAttentionFwd {
  GroupAttention of;
  void* out;        // [B, T, H, d]
  void* logsumexp;  // [B, H, T] of a row of logits
};

struct GroupAttentionBwd {
  GroupAttention of;
  const void* logsumexp;  // [B, H, T]
  const void* grad;       // [B, T, H, d], rows of H * d contiguous
  int64_t grad_image_stride;
  int64_t grad_token_stride;
  void* grad_qkv;    // [B, T, 3, H, d]
  void* grad_table;  // [R, H]
  double* scratch;   // [attention_tasks, H, R]
};

// Images that share a plan go through a window together, since they share the bias, and pairs of a window and a head go
// in slices. Both are fixed, so that sums are the same for any number of threads.
constexpr int64_t kImagesOfBlock = 4;
constexpr int64_t kSlicesOfImage = 2;
inline int64_t images_of_block(int64_t plans) { return plans == 1 ? kImagesOfBlock : 1; }
inline int64_t attention_tasks(int64_t images, int64_t plans) {
  return ceil_div(images, images_of_block(plans)) * images_of_block(plans) * kSlicesOfImage;
}

// CPU. The plan is checked first; throws Error.
void group_attention(const GroupAttentionFwd& args, const Parallel& parallel, Simd simd);
void group_attention_bwd(const GroupAttentionBwd& args, const Parallel& parallel, Simd simd);

}  // namespace bimkern
