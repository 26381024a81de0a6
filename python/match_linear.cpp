// torch ops of the linear layer of match_predict and match_loss, CPU alone. Schemas: bimkern/ops/match_linear.py.
#include "ops/match_linear.h"

#include <tuple>

#include "bridge.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

void check_floats(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.is_cpu(), op, ": ", name,
                  " must be float32 on the CPU");
}

// weight: [P, D, 1, 1].
MatchGrid grid_of(const char* op, int64_t images, int64_t tokens, const Tensor& weight, int64_t rows, int64_t columns,
                  bool squares) {
  const int64_t side = squares ? 2 : 1;
  STD_TORCH_CHECK(rows >= 0 && columns >= 0 && rows % side == 0 && columns % side == 0 && tokens == rows * columns, op,
                  ": tokens must be [B, N, D] with N=rows*columns, both even for squares");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 1 && weight.size(3) == 1 && weight.is_contiguous(), op,
                  ": weight must be [P, D, 1, 1], contiguous");
  check_floats(op, "weight", weight);
  return MatchGrid{images, rows, columns, side, weight.size(1), weight.size(0)};
}

// tokens have contiguous rows.
MatchLayer layer_of(const char* op, const Tensor& tokens, const Tensor& weight, const Tensor& bias, int64_t rows,
                    int64_t columns, bool squares) {
  STD_TORCH_CHECK(tokens.dim() == 3 && tokens.scalar_type() != ScalarType::Double, op,
                  ": tokens must be [B, N, D], not float64");
  const MatchGrid grid = grid_of(op, tokens.size(0), tokens.size(1), weight, rows, columns, squares);
  STD_TORCH_CHECK(tokens.size(2) == grid.width, op, ": tokens and weight must have one width");
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == grid.length && bias.is_contiguous(), op,
                  ": bias must be [P], contiguous");
  check_floats(op, "bias", bias);
  return MatchLayer{grid,
                    dtype_of(op, tokens),
                    tokens.const_data_ptr(),
                    tokens.stride(0),
                    tokens.stride(1),
                    weight.const_data_ptr<float>(),
                    bias.const_data_ptr<float>()};
}

std::tuple<Tensor, Tensor> match_linear_op(const Tensor& tokens, const Tensor& weight, const Tensor& bias, int64_t rows,
                                           int64_t columns, bool squares) {
  const Tensor values = with_contiguous_rows(tokens);
  MatchLinear args{};
  args.layer = layer_of("match_linear", values, weight, bias, rows, columns, squares);
  const MatchGrid& grid = args.layer.grid;
  Tensor out = make_empty(weight, {grid.images, grid.cells(), grid.length});
  Tensor means = squares ? make_empty(weight, {grid.images, grid.cells(), grid.width}) : make_empty(weight, {0});
  args.means = squares ? means.mutable_data_ptr<float>() : nullptr;
  args.out = out.mutable_data_ptr<float>();
  match_linear(args, torch_pool(), simd_in_use());
  return {out, means};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> match_linear_loss_op(const Tensor& tokens, const Tensor& weight,
                                                                const Tensor& bias, const Tensor& target,
                                                                const Tensor& mask, const Tensor& denominator,
                                                                int64_t rows, int64_t columns, bool squares,
                                                                bool absolute, bool with_grads) {
  const char* op = "match_linear_loss";
  const Tensor values = with_contiguous_rows(tokens), targets = with_contiguous_rows(target);
  MatchLinearLoss args{};
  args.layer = layer_of(op, values, weight, bias, rows, columns, squares);
  const MatchGrid& grid = args.layer.grid;
  STD_TORCH_CHECK(target.dim() == 3 && target.size(0) == grid.images && target.size(1) == grid.cells() &&
                      target.size(2) == grid.length,
                  op, ": target must be [B, M, P]");
  STD_TORCH_CHECK(mask.dim() == 2 && mask.size(0) == grid.images && mask.size(1) == grid.tokens(), op,
                  ": mask must be [B, N]");
  STD_TORCH_CHECK(denominator.dim() == 0, op, ": denominator must be a scalar");
  check_floats(op, "target", target);
  check_floats(op, "mask", mask);
  check_floats(op, "denominator", denominator);
  args.kind = absolute ? LossKind::kL1 : LossKind::kL2;
  args.target = targets.const_data_ptr<float>();
  args.target_image_stride = targets.stride(0);
  args.target_cell_stride = targets.stride(1);
  args.mask = mask.const_data_ptr<float>();
  args.mask_image_stride = mask.stride(0);
  args.mask_token_stride = mask.stride(1);
  args.denominator = denominator.const_data_ptr<float>();
  Tensor loss = make_empty(weight, {});
  args.loss = loss.mutable_data_ptr<float>();
  if (!with_grads) {
    match_linear_loss(args, torch_pool(), simd_in_use());
    return {loss, make_empty(weight, {0}), make_empty(weight, {0}), make_empty(weight, {0})};
  }
  Tensor grad_out = make_empty(weight, {grid.images, grid.cells(), grid.length});
  Tensor grad_weight = make_empty(weight, weight.sizes()), grad_bias = make_empty(bias, {grid.length});
  Tensor scratch = make_empty(weight, {match_slabs(grid.all_cells()), grid.length, grid.width});
  args.grad_out = grad_out.mutable_data_ptr<float>();
  args.grad_weight = grad_weight.mutable_data_ptr<float>();
  args.grad_bias = grad_bias.mutable_data_ptr<float>();
  args.scratch = scratch.mutable_data_ptr<float>();
  match_linear_loss(args, torch_pool(), simd_in_use());
  return {loss, grad_out, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> match_linear_bwd_op(const Tensor& grad, std::optional<Tensor> x,
                                                       const Tensor& weight, int64_t rows, int64_t columns,
                                                       bool squares, ScalarType dtype, bool tokens_needed,
                                                       bool weight_needed, bool bias_needed) {
  const char* op = "match_linear_bwd";
  STD_TORCH_CHECK(grad.dim() == 3, op, ": grad must be [B, M, P]");
  check_floats(op, "grad", grad);
  MatchLinearBwd args{};
  args.grid = grid_of(op, grad.size(0), rows * columns, weight, rows, columns, squares);
  STD_TORCH_CHECK(grad.size(1) == args.grid.cells() && grad.size(2) == args.grid.length, op,
                  ": grad must be [B, M, P]");
  const Tensor grads = make_contiguous(grad);
  args.grad_out = grads.const_data_ptr<float>();
  args.weight = weight.const_data_ptr<float>();
  STD_TORCH_CHECK(dtype != ScalarType::Double, op, ": tokens must not be float64");
  Tensor grad_tokens = tokens_needed
                           ? make_empty(weight, {args.grid.images, args.grid.tokens(), args.grid.width}, dtype)
                           : make_empty(weight, {0}, dtype);
  if (tokens_needed) {
    args.dtype = dtype_of(op, grad_tokens);
    args.grad_tokens = grad_tokens.mutable_data_ptr();
  }
  Tensor grad_weight = weight_needed ? make_empty(weight, weight.sizes()) : make_empty(weight, {0});
  Tensor multiplied = weight;
  if (weight_needed) {
    STD_TORCH_CHECK(x.has_value() && x->dim() == 3 && x->size(0) == args.grid.images &&
                        x->size(1) == args.grid.cells() && x->size(2) == args.grid.width,
                    op, ": x must be [B, M, D] where weight needs a gradient");
    check_floats(op, "x", *x);
    multiplied = make_contiguous(*x);
    args.x = multiplied.const_data_ptr<float>();
    args.grad_weight = grad_weight.mutable_data_ptr<float>();
  }
  Tensor grad_bias = bias_needed ? make_empty(weight, {args.grid.length}) : make_empty(weight, {0});
  args.grad_bias = bias_needed ? grad_bias.mutable_data_ptr<float>() : nullptr;
  match_linear_bwd(args, torch_pool(), simd_in_use());
  return {grad_tokens, grad_weight, grad_bias};
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) {
  library.impl("match_linear", TORCH_BOX(&bimkern::match_linear_op));
  library.impl("match_linear_loss", TORCH_BOX(&bimkern::match_linear_loss_op));
  library.impl("match_linear_bwd", TORCH_BOX(&bimkern::match_linear_bwd_op));
}
