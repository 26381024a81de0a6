// torch ops restore_tokens and restore_tokens_bwd. Schemas: bimkern/ops/restore_tokens.py.
#include "ops/restore_tokens.h"

#include "keep.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

void check_visible(const char* op, const Tensor& visible, const Tensor& keep, int64_t num_prefix) {
  STD_TORCH_CHECK(visible.size(1) == num_prefix + keep.size(1), op,
                  ": visible must be [B, R+K, D] with R+K=", num_prefix + keep.size(1), ", got ", visible.size(1),
                  " rows");
}

Tensor restore_tokens_op(const Tensor& visible, const Tensor& keep, const Tensor& mask_token,
                         const std::optional<Tensor>& pos, int64_t num_tokens, int64_t num_prefix) {
  const char* op = "restore_tokens";
  check_sizes(op, visible, keep, num_tokens, num_prefix);
  check_visible(op, visible, keep, num_prefix);
  STD_TORCH_CHECK(mask_token.dim() == 1 && mask_token.size(0) == visible.size(2), op, ": mask_token must be [D]");
  STD_TORCH_CHECK(mask_token.scalar_type() == visible.scalar_type() && same_device(mask_token, visible), op,
                  ": mask_token must have the dtype and device of the rows");
  const Tensor rows = with_contiguous_rows(visible);
  const Tensor mask_row = with_contiguous_rows(mask_token);
  Tensor out = make_empty(visible, {visible.size(0), num_prefix + num_tokens, visible.size(2)});
  RestoreTokens args{};
  args.dtype = dtype_of(op, visible);
  args.size = sizes(visible, keep, num_tokens, num_prefix);
  args.keep = keep_of(keep);
  args.visible = rows.const_data_ptr();
  args.visible_image_stride = rows.stride(0);
  args.visible_token_stride = rows.stride(1);
  args.mask_token = mask_row.const_data_ptr();
  std::optional<Tensor> pos_rows;
  if (pos) {
    check_pos(op, *pos, visible, num_tokens);
    pos_rows = with_contiguous_rows(*pos);
    args.pos = pos_rows->const_data_ptr();
    args.pos_token_stride = pos_rows->stride(0);
  }
  args.out = out.mutable_data_ptr();
  if (visible.is_cuda()) {
    const CudaScope cuda(visible);
    restore_tokens_cuda(args, cuda.stream());
  } else {
    restore_tokens(args, torch_pool(), simd_in_use());
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> restore_tokens_bwd_op(const Tensor& grad, const Tensor& keep, int64_t num_prefix,
                                                         bool with_pos) {
  const char* op = "restore_tokens_bwd";
  check_sizes(op, grad, keep, grad.dim() == 3 ? grad.size(1) - num_prefix : 0, num_prefix);
  const int64_t num_tokens = grad.size(1) - num_prefix;
  const int64_t width = grad.size(2);
  const Tensor rows = with_contiguous_rows(grad);
  const bool is_double = grad.scalar_type() == ScalarType::Double;
  Tensor grad_visible = make_empty(grad, {grad.size(0), num_prefix + keep.size(1), width});
  Tensor grad_mask_token = make_empty(grad, {width});
  Tensor grad_pos = make_empty(grad, {with_pos ? num_tokens : 0, width});
  Tensor masked_sums = make_empty(grad, {num_tokens, width}, is_double ? ScalarType::Double : ScalarType::Float);
  RestoreTokensBwd args{};
  args.dtype = dtype_of(op, grad);
  args.size = sizes(grad, keep, num_tokens, num_prefix);
  args.keep = keep_of(keep);
  args.grad_out = rows.const_data_ptr();
  args.grad_image_stride = rows.stride(0);
  args.grad_token_stride = rows.stride(1);
  args.grad_visible = grad_visible.mutable_data_ptr();
  args.grad_mask_token = grad_mask_token.mutable_data_ptr();
  args.grad_pos = with_pos ? grad_pos.mutable_data_ptr() : nullptr;
  args.masked_sums = masked_sums.mutable_data_ptr();
  if (grad.is_cuda()) {
    const CudaScope cuda(grad);
    Tensor positions = make_places(keep, num_tokens);
    args.positions = positions.mutable_data_ptr<int32_t>();
    restore_tokens_bwd_cuda(args, cuda.stream());
  } else {
    restore_tokens_bwd(args, torch_pool(), simd_in_use());
  }
  return {grad_visible, grad_mask_token, grad_pos};
}

void register_ops(torch::stable::detail::StableLibrary& library) {
  library.impl("restore_tokens", TORCH_BOX(&restore_tokens_op));
  library.impl("restore_tokens_bwd", TORCH_BOX(&restore_tokens_bwd_op));
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) { bimkern::register_ops(library); }
STABLE_TORCH_LIBRARY_IMPL(bimkern, CUDA, library) { bimkern::register_ops(library); }
