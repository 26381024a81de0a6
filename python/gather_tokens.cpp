// torch ops gather_tokens, gather_tokens_bwd, gather_tokens_bwd_pos. Schemas: bimkern/ops/gather_tokens.py.
#include "ops/gather_tokens.h"

#include "keep.h"

namespace bimkern {
namespace {

Tensor gather_tokens_op(const Tensor& tokens, const Tensor& keep, const std::optional<Tensor>& pos, int64_t num_prefix,
                        int64_t num_masks) {
  const char* op = "gather_tokens";
  const int64_t num_tokens = tokens.size(1) - num_prefix;
  check_sizes(op, tokens, keep, num_tokens, num_prefix, num_masks);
  const Tensor rows = with_contiguous_rows(tokens);
  Tensor out = make_empty(tokens, {keep.size(0), num_prefix + keep.size(1), tokens.size(2)});
  GatherTokens args{};
  args.dtype = dtype_of(op, tokens);
  args.size = sizes(tokens, keep, num_tokens, num_prefix);
  args.size.images = keep.size(0);
  args.masks = num_masks;
  args.keep = keep_of(keep);
  args.tokens = rows.const_data_ptr();
  args.tokens_image_stride = rows.stride(0);
  args.tokens_token_stride = rows.stride(1);
  std::optional<Tensor> pos_rows;
  if (pos) {
    check_pos(op, *pos, tokens, num_tokens);
    pos_rows = with_contiguous_rows(*pos);
    args.pos = pos_rows->const_data_ptr();
    args.pos_token_stride = pos_rows->stride(0);
  }
  args.out = out.mutable_data_ptr();
  if (tokens.is_cuda()) {
    const CudaScope cuda(tokens);
    gather_tokens_cuda(args, cuda.stream());
  } else {
    gather_tokens(args, torch_pool(), simd_in_use());
  }
  return out;
}

GatherTokensBwd bwd_args(const char* op, const Tensor& grad, const Tensor& keep, int64_t num_tokens, int64_t num_prefix,
                         Tensor& result) {
  GatherTokensBwd args{};
  args.dtype = dtype_of(op, grad);
  args.size = sizes(grad, keep, num_tokens, num_prefix);
  args.keep = keep_of(keep);
  args.grad_out = grad.const_data_ptr();
  args.grad_image_stride = grad.stride(0);
  args.grad_token_stride = grad.stride(1);
  args.result = result.mutable_data_ptr();
  return args;
}

void check_bwd(const char* op, const Tensor& grad, const Tensor& keep, int64_t num_tokens, int64_t num_prefix) {
  check_sizes(op, grad, keep, num_tokens, num_prefix);
  STD_TORCH_CHECK(grad.size(1) == num_prefix + keep.size(1), op,
                  ": grad must be [B, R+K, D] with R+K=", num_prefix + keep.size(1), ", got ", grad.size(1), " rows");
}

Tensor gather_tokens_bwd_op(const Tensor& grad, const Tensor& keep, int64_t num_tokens, int64_t num_prefix,
                            int64_t num_masks) {
  const char* op = "gather_tokens_bwd";
  check_bwd(op, grad, keep, num_tokens, num_prefix);
  STD_TORCH_CHECK(num_masks >= 1 && keep.size(0) % num_masks == 0, op,
                  ": keep must be [B*M, K] with num_masks M=", num_masks, ", got ", keep.size(0), " rows");
  const Tensor rows = with_contiguous_rows(grad);
  Tensor result = make_empty(grad, {grad.size(0) / num_masks, num_prefix + num_tokens, grad.size(2)});
  GatherTokensBwd args = bwd_args(op, rows, keep, num_tokens, num_prefix, result);
  args.masks = num_masks;
  if (grad.is_cuda()) {
    const CudaScope cuda(grad);
    std::optional<Tensor> positions;
    if (num_masks > 1) {
      positions = make_places(keep, num_tokens);
      args.positions = positions->mutable_data_ptr<int32_t>();
    }
    gather_tokens_bwd_cuda(args, cuda.stream());
  } else {
    gather_tokens_bwd(args, torch_pool(), simd_in_use());
  }
  return result;
}

Tensor gather_tokens_bwd_pos_op(const Tensor& grad, const Tensor& keep, int64_t num_tokens, int64_t num_prefix) {
  const char* op = "gather_tokens_bwd_pos";
  check_bwd(op, grad, keep, num_tokens, num_prefix);
  const Tensor rows = with_contiguous_rows(grad);
  Tensor result = make_empty(grad, {num_tokens, grad.size(2)});
  GatherTokensBwd args = bwd_args(op, rows, keep, num_tokens, num_prefix, result);
  if (grad.is_cuda()) {
    const CudaScope cuda(grad);
    Tensor positions = make_places(keep, num_tokens);
    args.positions = positions.mutable_data_ptr<int32_t>();
    gather_tokens_bwd_pos_cuda(args, cuda.stream());
  } else {
    gather_tokens_bwd_pos(args, torch_pool(), simd_in_use());
  }
  return result;
}

void register_ops(torch::stable::detail::StableLibrary& library) {
  library.impl("gather_tokens", TORCH_BOX(&gather_tokens_op));
  library.impl("gather_tokens_bwd", TORCH_BOX(&gather_tokens_bwd_op));
  library.impl("gather_tokens_bwd_pos", TORCH_BOX(&gather_tokens_bwd_pos_op));
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) { bimkern::register_ops(library); }
STABLE_TORCH_LIBRARY_IMPL(bimkern, CUDA, library) { bimkern::register_ops(library); }
