// torch ops gather_tokens, gather_tokens_bwd, gather_tokens_bwd_pos. Schemas: bimkern/ops/gather_tokens.py.
#include "ops/tokens.h"
#include "bridge.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

// The public Python function checks for users; here only what the kernels would read or write beyond.
void check_keep(const char* op, const Tensor& rows, const Tensor& keep, int64_t num_tokens, int64_t num_prefix) {
  STD_TORCH_CHECK(rows.dim() == 3 && keep.dim() == 2 && rows.size(0) == keep.size(0), op,
                  ": expected rows [B, *, D] and keep [B, K], got ", rows.dim(), " and ", keep.dim(), " dimensions");
  STD_TORCH_CHECK(keep.scalar_type() == ScalarType::Long, op, ": keep must be int64");
  STD_TORCH_CHECK(keep.is_cpu() == rows.is_cpu() && keep.get_device_index() == rows.get_device_index(), op,
                  ": keep must be on the device of the rows");
  STD_TORCH_CHECK(num_tokens >= 0 && num_prefix >= 0, op, ": num_tokens and num_prefix must be at least 0, got ",
                  num_tokens, " and ", num_prefix);
}

TokenSizes sizes(const Tensor& rows, const Tensor& keep, int64_t num_tokens, int64_t num_prefix) {
  return TokenSizes{rows.size(0), num_prefix, num_tokens, keep.size(1), rows.size(2)};
}

Keep keep_of(const Tensor& keep) { return Keep{keep.const_data_ptr<int64_t>(), keep.stride(0), keep.stride(1)}; }

Tensor gather_tokens_op(const Tensor& tokens, const Tensor& keep, const std::optional<Tensor>& pos,
                        int64_t num_prefix) {
  const char* op = "gather_tokens";
  const int64_t num_tokens = tokens.size(1) - num_prefix;
  check_keep(op, tokens, keep, num_tokens, num_prefix);
  const Tensor rows = with_contiguous_rows(tokens);
  Tensor out = torch::stable::new_empty(tokens, {tokens.size(0), num_prefix + keep.size(1), tokens.size(2)});
  GatherTokens args{};
  args.dtype = dtype_of(op, tokens);
  args.size = sizes(tokens, keep, num_tokens, num_prefix);
  args.keep = keep_of(keep);
  args.tokens = rows.const_data_ptr();
  args.tokens_image_stride = rows.stride(0);
  args.tokens_token_stride = rows.stride(1);
  std::optional<Tensor> pos_rows;
  if (pos) {
    STD_TORCH_CHECK(pos->dim() == 2 && pos->size(0) == num_tokens && pos->size(1) == tokens.size(2), op,
                    ": pos must be [N, D]");
    STD_TORCH_CHECK(pos->scalar_type() == tokens.scalar_type() && pos->is_cpu() == tokens.is_cpu() &&
                        pos->get_device_index() == tokens.get_device_index(),
                    op, ": pos must have the dtype and device of tokens");
    pos_rows = with_contiguous_rows(*pos);
    args.pos = pos_rows->const_data_ptr();
    args.pos_token_stride = pos_rows->stride(0);
  }
  args.out = out.mutable_data_ptr();
  if (tokens.is_cuda()) {
    const CudaScope cuda(tokens);
    gather_tokens_cuda(args, cuda.stream());
  } else {
    gather_tokens(args, torch_pool());
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
  check_keep(op, grad, keep, num_tokens, num_prefix);
  STD_TORCH_CHECK(grad.size(1) == num_prefix + keep.size(1), op,
                  ": grad must be [B, R+K, D] with R+K=", num_prefix + keep.size(1), ", got ", grad.size(1), " rows");
}

Tensor gather_tokens_bwd_op(const Tensor& grad, const Tensor& keep, int64_t num_tokens, int64_t num_prefix) {
  const char* op = "gather_tokens_bwd";
  check_bwd(op, grad, keep, num_tokens, num_prefix);
  const Tensor rows = with_contiguous_rows(grad);
  Tensor result = torch::stable::new_empty(grad, {grad.size(0), num_prefix + num_tokens, grad.size(2)});
  const GatherTokensBwd args = bwd_args(op, rows, keep, num_tokens, num_prefix, result);
  if (grad.is_cuda()) {
    const CudaScope cuda(grad);
    gather_tokens_bwd_cuda(args, cuda.stream());
  } else {
    gather_tokens_bwd(args, torch_pool());
  }
  return result;
}

Tensor gather_tokens_bwd_pos_op(const Tensor& grad, const Tensor& keep, int64_t num_tokens, int64_t num_prefix) {
  const char* op = "gather_tokens_bwd_pos";
  check_bwd(op, grad, keep, num_tokens, num_prefix);
  const Tensor rows = with_contiguous_rows(grad);
  Tensor result = torch::stable::new_empty(grad, {num_tokens, grad.size(2)});
  const GatherTokensBwd args = bwd_args(op, rows, keep, num_tokens, num_prefix, result);
  if (grad.is_cuda()) {
    const CudaScope cuda(grad);
    gather_tokens_bwd_pos_cuda(args, cuda.stream());
  } else {
    gather_tokens_bwd_pos(args, torch_pool());
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
