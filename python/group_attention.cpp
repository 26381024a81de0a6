// torch ops group_attention_fwd and group_attention_bwd, CPU. Schemas and the checks for users:
// bimkern/ops/group_attention.py.
#include "ops/group_attention.h"

#include <tuple>

#include "bridge.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

const int32_t* plan_data(const char* op, const char* name, const Tensor& tensor, int64_t dims) {
  STD_TORCH_CHECK(tensor.dim() == dims && tensor.scalar_type() == ScalarType::Int && tensor.is_contiguous(), op, ": ",
                  name, " must have ", dims, " dimensions, int32, contiguous");
  return tensor.const_data_ptr<int32_t>();
}

// Inputs laid out as the kernels read them, and what the kernels are told.
struct Inputs {
  Inputs(const char* op, const Tensor& qkv_given, const Tensor& table_given, const Tensor& members_given,
         const Tensor& windows_given, const Tensor& positions_given, int64_t num_heads, double scale)
      : qkv(with_contiguous_rows(qkv_given)),
        table(make_contiguous(table_given)),
        members(make_contiguous(members_given)),
        windows(make_contiguous(windows_given)),
        positions(make_contiguous(positions_given)) {
    STD_TORCH_CHECK(qkv.dim() == 3 && num_heads > 0 && qkv.size(2) % (3 * num_heads) == 0, op,
                    ": qkv must be [B, T, 3*H*d] with H=", num_heads);
    args.dtype = dtype_of(op, qkv);
    wide = args.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(table.dim() == 2 && table.size(1) == num_heads && table.scalar_type() == wide, op,
                    ": table must be [R, H=", num_heads, "], of the dtype of the arithmetic");
    args.plans.members = plan_data(op, "members", members, 3);
    args.plans.windows = plan_data(op, "windows", windows, 2);
    args.plans.positions = plan_data(op, "positions", positions, 2);
    args.plans.plans = members.size(0);
    args.plans.groups = members.size(1);
    args.plans.group_size = members.size(2);
    args.plans.tokens = qkv.size(1);
    args.images = qkv.size(0);
    for (const Tensor* of_tokens : {&windows, &positions}) {
      STD_TORCH_CHECK(of_tokens->size(0) == args.plans.plans && of_tokens->size(1) == args.plans.tokens, op,
                      ": windows and positions must be [S, T=", args.plans.tokens, "]");
    }
    STD_TORCH_CHECK(args.plans.plans == 1 || args.plans.plans == args.images, op,
                    ": there must be 1 plan or B=", args.images, ", got ", args.plans.plans);
    args.heads = num_heads;
    args.width = qkv.size(2) / (3 * num_heads);
    args.relative_positions = table.size(0);
    args.scale = scale;
    args.qkv = qkv.const_data_ptr();
    args.image_stride = qkv.stride(0);
    args.token_stride = qkv.stride(1);
    args.table = table.const_data_ptr();
  }

  Tensor qkv, table, members, windows, positions;
  GroupAttention args{};
  ScalarType wide;
};

std::tuple<Tensor, Tensor> group_attention_fwd_op(const Tensor& qkv, const Tensor& table, const Tensor& members,
                                                  const Tensor& windows, const Tensor& positions, int64_t num_heads,
                                                  double scale) {
  const Inputs inputs("group_attention", qkv, table, members, windows, positions, num_heads, scale);
  const GroupAttention& of = inputs.args;
  Tensor out = make_empty(qkv, {of.images, of.plans.tokens, of.heads * of.width});
  Tensor logsumexp = make_empty(qkv, {of.images, of.heads, of.plans.tokens}, inputs.wide);
  group_attention({of, out.mutable_data_ptr(), logsumexp.mutable_data_ptr()}, torch_pool(), simd_in_use());
  return {out, logsumexp};
}

std::tuple<Tensor, Tensor> group_attention_bwd_op(const Tensor& grad_given, const Tensor& logsumexp_given,
                                                  const Tensor& qkv, const Tensor& table, const Tensor& members,
                                                  const Tensor& windows, const Tensor& positions, int64_t num_heads,
                                                  double scale) {
  const char* op = "group_attention_bwd";
  const Inputs inputs(op, qkv, table, members, windows, positions, num_heads, scale);
  const GroupAttention& of = inputs.args;
  const Tensor grad = with_contiguous_rows(grad_given), logsumexp = make_contiguous(logsumexp_given);
  STD_TORCH_CHECK(grad.dim() == 3 && grad.scalar_type() == qkv.scalar_type() && grad.size(0) == of.images &&
                      grad.size(1) == of.plans.tokens && grad.size(2) == of.heads * of.width,
                  op, ": grad must be [B, T, H*d], dtype of qkv");
  STD_TORCH_CHECK(logsumexp.numel() == of.images * of.heads * of.plans.tokens && logsumexp.scalar_type() == inputs.wide,
                  op, ": logsumexp must be [B, H, T], of the dtype of the arithmetic");
  Tensor grad_qkv = make_empty(qkv, {of.images, of.plans.tokens, 3 * of.heads * of.width});
  Tensor grad_table = make_empty(table, {of.relative_positions, of.heads});
  Tensor scratch = make_empty(table, {attention_tasks(of.images, of.plans.plans), of.heads, of.relative_positions},
                              ScalarType::Double);
  GroupAttentionBwd args{};
  args.of = of;
  args.logsumexp = logsumexp.const_data_ptr();
  args.grad = grad.const_data_ptr();
  args.grad_image_stride = grad.stride(0);
  args.grad_token_stride = grad.stride(1);
  args.grad_qkv = grad_qkv.mutable_data_ptr();
  args.grad_table = grad_table.mutable_data_ptr();
  args.scratch = scratch.mutable_data_ptr<double>();
  group_attention_bwd(args, torch_pool(), simd_in_use());
  return {grad_qkv, grad_table};
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) {
  library.impl("group_attention_fwd", TORCH_BOX(&bimkern::group_attention_fwd_op));
  library.impl("group_attention_bwd", TORCH_BOX(&bimkern::group_attention_bwd_op));
}
