// torch ops of the stages of match_predict, CPU alone. Schemas: bimkern/ops/match_linear.py.
#include "ops/match_predict.h"

#include "bridge.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

void check_grid(const char* op, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(rows >= 0 && columns >= 0 && rows % 2 == 0 && columns % 2 == 0, op,
                  ": rows and columns must be even, got ", rows, " and ", columns);
}

// Both compute in the same type.
void check_types(const char* op, ScalarType tokens, ScalarType dtype) {
  STD_TORCH_CHECK((tokens == ScalarType::Double) == (dtype == ScalarType::Double), op,
                  ": tokens and the result must both be float64, or neither");
}

Tensor match_pool_op(const Tensor& tokens, std::optional<Tensor> weight, int64_t rows, int64_t columns,
                     ScalarType dtype) {
  const char* op = "match_pool";
  check_grid(op, rows, columns);
  STD_TORCH_CHECK(tokens.dim() == 3 && tokens.size(1) == rows * columns, op,
                  ": tokens must be [B, N, D] with N=rows*columns");
  check_types(op, tokens.scalar_type(), dtype);
  const Tensor values = with_contiguous_rows(tokens);
  const int64_t cells = rows * columns / 4;
  Tensor out = make_empty(tokens, {tokens.size(0), cells, tokens.size(2)}, dtype);
  MatchPool args{};
  args.dtype = dtype_of(op, out);
  args.tokens_dtype = dtype_of(op, tokens);
  args.images = tokens.size(0);
  args.rows = rows;
  args.columns = columns;
  args.width = tokens.size(2);
  if (weight.has_value()) {
    const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(weight->dim() == 2 && weight->size(0) == tokens.size(0) && weight->size(1) == cells &&
                        weight->is_contiguous() && weight->scalar_type() == wide,
                    op, ": weight must be [B, N / 4], contiguous, with the dtype of the sums");
    args.weight = weight->const_data_ptr();
  }
  args.tokens = values.const_data_ptr();
  args.image_stride = values.stride(0);
  args.token_stride = values.stride(1);
  args.out = out.mutable_data_ptr();
  match_pool(args, torch_pool(), simd_in_use());
  return out;
}

Tensor match_pool_bwd_op(const Tensor& grad, int64_t rows, int64_t columns, ScalarType dtype) {
  const char* op = "match_pool_bwd";
  check_grid(op, rows, columns);
  STD_TORCH_CHECK(grad.dim() == 3 && grad.size(1) == rows * columns / 4, op,
                  ": grad must be [B, N / 4, D] with N=rows*columns");
  check_types(op, grad.scalar_type(), dtype);
  const Tensor values = make_contiguous(grad);
  Tensor out = make_empty(grad, {grad.size(0), rows * columns, grad.size(2)}, dtype);
  MatchPoolBwd args{};
  args.dtype = dtype_of(op, grad);
  args.tokens_dtype = dtype_of(op, out);
  args.images = grad.size(0);
  args.rows = rows;
  args.columns = columns;
  args.width = grad.size(2);
  args.grad = values.const_data_ptr();
  args.grad_tokens = out.mutable_data_ptr();
  match_pool_bwd(args, torch_pool(), simd_in_use());
  return out;
}

void check_matrix(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.scalar_type() == ScalarType::Float, op, ": ", name,
                  " must have two dimensions of float32");
}

void match_product_op(const Tensor& left, const Tensor& right, std::optional<Tensor> bias, bool add, Tensor out) {
  const char* op = "match_product";
  check_matrix(op, "left", left);
  check_matrix(op, "right", right);
  check_matrix(op, "out", out);
  MatchProduct args{};
  args.rows = out.size(0);
  args.depth = left.size(1);
  args.columns = out.size(1);
  STD_TORCH_CHECK(left.size(0) == args.rows && right.size(0) == args.depth && right.size(1) == args.columns, op,
                  ": left [n, k], right [k, m] and out [n, m] do not fit");
  STD_TORCH_CHECK((args.columns <= 1 || (right.stride(1) == 1 && out.stride(1) == 1)), op,
                  ": right and out must have contiguous rows");
  if (bias.has_value()) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == args.columns && bias->is_contiguous() &&
                        bias->scalar_type() == ScalarType::Float && !add,
                    op, ": bias must be [m] float32, contiguous, and add false");
    args.bias = bias->const_data_ptr<float>();
  }
  args.left = left.const_data_ptr<float>();
  args.left_row_stride = left.stride(0);
  args.left_depth_stride = left.stride(1);
  args.right = right.const_data_ptr<float>();
  args.right_stride = right.stride(0);
  args.add = add;
  args.out = out.mutable_data_ptr<float>();
  args.out_stride = out.stride(0);
  match_product(args, torch_pool(), simd_in_use());
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) {
  library.impl("match_pool", TORCH_BOX(&bimkern::match_pool_op));
  library.impl("match_pool_bwd", TORCH_BOX(&bimkern::match_pool_bwd_op));
  library.impl("match_product", TORCH_BOX(&bimkern::match_product_op));
}
