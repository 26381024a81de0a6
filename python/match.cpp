// torch ops of the stages of match_loss, CPU alone. Schemas: bimkern/ops/match_fused.py, which is their only caller and
// makes all that they need: nothing is allocated here, since how often these are called follows from masks.
#include "ops/match.h"

#include "bridge.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

ScalarType arithmetic_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Contiguous, of a shape and a dtype.
void check_buffer(const char* op, const char* name, const Tensor& tensor, ScalarType dtype,
                  std::initializer_list<int64_t> shape) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size()) && tensor.is_contiguous();
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) {
    fits = tensor.size(d) == shape.begin()[d];
  }
  STD_TORCH_CHECK(fits && tensor.scalar_type() == dtype, op, ": ", name, " has a wrong shape, layout or dtype");
}

// Of so many blocks of rows, or more.
void check_scratch(const char* op, const Tensor& scratch, int64_t blocks, int64_t width) {
  STD_TORCH_CHECK(scratch.dim() == 2 && scratch.is_contiguous() && scratch.scalar_type() == ScalarType::Double &&
                      scratch.size(0) >= blocks && scratch.size(1) == width,
                  op, ": scratch has a wrong shape, layout or dtype");
}

void check_rows(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, op, ": ", name, " must have contiguous rows");
}

MatchCells cells_of(const char* op, const Tensor& ids, int64_t images, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(ids.dim() == 1 && ids.scalar_type() == ScalarType::Long && ids.is_contiguous(), op,
                  ": cells must be [n] int64, contiguous");
  return MatchCells{ids.const_data_ptr<int64_t>(), ids.size(0), images, rows, columns};
}

int64_t match_masked_op(const Tensor& mask, bool every, Tensor ids) {
  const char* op = "match_masked";
  STD_TORCH_CHECK(mask.dim() == 2, op, ": mask must be [B, N], got ", mask.dim(), " dimensions");
  check_buffer(op, "ids", ids, ScalarType::Long, {mask.size(0) * mask.size(1)});
  MatchMasked args{};
  args.dtype = dtype_of(op, mask);
  args.images = mask.size(0);
  args.cells = mask.size(1);
  args.mask = mask.const_data_ptr();
  args.image_stride = mask.stride(0);
  args.cell_stride = mask.stride(1);
  args.ids = ids.mutable_data_ptr<int64_t>();
  args.every = every;
  return match_masked(args);
}

void match_rows_op(const Tensor& tokens, const Tensor& ids, Tensor out) {
  const char* op = "match_rows";
  STD_TORCH_CHECK(tokens.dim() == 3, op, ": tokens must be [B, N, D], got ", tokens.dim(), " dimensions");
  check_buffer(op, "out", out, tokens.scalar_type(), {ids.size(0), tokens.size(2)});
  check_rows(op, "tokens", tokens);
  MatchRows args{};
  args.dtype = dtype_of(op, tokens);
  args.cells = cells_of(op, ids, tokens.size(0), 1, tokens.size(1));
  args.width = tokens.size(2);
  args.tokens = tokens.const_data_ptr();
  args.image_stride = tokens.stride(0);
  args.token_stride = tokens.stride(1);
  args.out = out.mutable_data_ptr();
  match_rows(args, torch_pool());
}

void match_rows_bwd_op(const Tensor& grad_rows, const Tensor& ids, int64_t begin, int64_t end, Tensor grad_tokens) {
  const char* op = "match_rows_bwd";
  STD_TORCH_CHECK(0 <= begin && begin <= end && end <= ids.size(0), op, ": begin and end must lie in [0, n]");
  STD_TORCH_CHECK(grad_tokens.dim() == 3 && grad_tokens.is_contiguous(), op, ": grad_tokens must be [B, N, D]");
  check_buffer(op, "grad_rows", grad_rows, grad_tokens.scalar_type(), {end - begin, grad_tokens.size(2)});
  MatchRowsBwd args{};
  args.dtype = dtype_of(op, grad_tokens);
  args.cells = cells_of(op, ids, grad_tokens.size(0), 1, grad_tokens.size(1));
  args.begin = begin;
  args.end = end;
  args.width = grad_tokens.size(2);
  args.grad_rows = grad_rows.const_data_ptr();
  args.grad_tokens = grad_tokens.mutable_data_ptr();
  match_rows_bwd(args, torch_pool());
}

void match_norm_op(const Tensor& x, const Tensor& x_bias, const Tensor& weight, const Tensor& bias, double eps,
                   Tensor out, Tensor slope, Tensor stats) {
  const char* op = "match_norm";
  STD_TORCH_CHECK(x.dim() == 2, op, ": x must be [rows, E], got ", x.dim(), " dimensions");
  const int64_t rows = x.size(0), width = x.size(1);
  const ScalarType wide = arithmetic_of(x);
  check_buffer(op, "x", x, x.scalar_type(), {rows, width});
  check_buffer(op, "out", out, x.scalar_type(), {rows, width});
  check_buffer(op, "slope", slope, wide, {rows, width});
  check_buffer(op, "stats", stats, wide, {rows, 2});
  check_buffer(op, "x_bias", x_bias, wide, {width});
  check_buffer(op, "weight", weight, wide, {width});
  check_buffer(op, "bias", bias, wide, {width});
  MatchNorm args{};
  args.dtype = dtype_of(op, x);
  args.rows = rows;
  args.width = width;
  args.eps = eps;
  args.x = x.const_data_ptr();
  args.x_bias = x_bias.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.bias = bias.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.slope = slope.mutable_data_ptr();
  args.stats = stats.mutable_data_ptr();
  match_norm(args, torch_pool(), simd_in_use());
}

void match_norm_bwd_op(const Tensor& x, const Tensor& x_bias, const Tensor& weight, const Tensor& slope,
                       const Tensor& stats, Tensor grad, Tensor sums, Tensor scratch) {
  const char* op = "match_norm_bwd";
  STD_TORCH_CHECK(x.dim() == 2, op, ": x must be [rows, E], got ", x.dim(), " dimensions");
  const int64_t rows = x.size(0), width = x.size(1);
  const ScalarType wide = arithmetic_of(x);
  check_buffer(op, "x", x, x.scalar_type(), {rows, width});
  check_buffer(op, "grad", grad, x.scalar_type(), {rows, width});
  check_buffer(op, "slope", slope, wide, {rows, width});
  check_buffer(op, "stats", stats, wide, {rows, 2});
  check_buffer(op, "x_bias", x_bias, wide, {width});
  check_buffer(op, "weight", weight, wide, {width});
  check_buffer(op, "sums", sums, ScalarType::Double, {3, width});
  check_scratch(op, scratch, match_blocks(rows), 3 * width);
  MatchNormBwd args{};
  args.dtype = dtype_of(op, x);
  args.rows = rows;
  args.width = width;
  args.x = x.const_data_ptr();
  args.x_bias = x_bias.const_data_ptr();
  args.weight = weight.const_data_ptr();
  args.slope = slope.const_data_ptr();
  args.stats = stats.const_data_ptr();
  args.grad = grad.mutable_data_ptr();
  args.sums = sums.mutable_data_ptr<double>();
  args.scratch = scratch.mutable_data_ptr<double>();
  match_norm_bwd(args, torch_pool(), simd_in_use());
}

void match_error_op(const Tensor& ids, const Tensor& weight, const Tensor& target, const Tensor& bias, int64_t rows,
                    int64_t columns, int64_t side, bool absolute, Tensor pred, Tensor sums, Tensor scratch) {
  const char* op = "match_error";
  STD_TORCH_CHECK(side == 1 || side == 2 || side == 4, op, ": side must be 1, 2 or 4, got ", side);
  STD_TORCH_CHECK(weight.dim() == 2 && rows >= 0 && columns >= 0 && weight.size(1) == rows * columns, op,
                  ": weight must be [B, N] with N=rows*columns");
  STD_TORCH_CHECK(
      target.dim() == 3 && target.size(0) == weight.size(0) && target.size(1) == weight.size(1) * side * side, op,
      ": target must be [B, M, P] with M=N*side*side");
  STD_TORCH_CHECK(pred.dim() == 2, op, ": pred must be [n*q, S], got ", pred.dim(), " dimensions");
  const ScalarType wide = arithmetic_of(pred);
  const int64_t squares = side == 4 ? 4 : 1, width = pred.size(1);
  const int64_t used = target.size(2) * (side == 1 ? 1 : 4);
  STD_TORCH_CHECK(used <= width, op, ": pred must have rows of at least ", used, " values, got ", width);
  STD_TORCH_CHECK(target.scalar_type() == wide && weight.scalar_type() == wide, op,
                  ": target and weight must have the dtype of the arithmetic");
  check_buffer(op, "pred", pred, pred.scalar_type(), {ids.size(0) * squares, width});
  check_buffer(op, "bias", bias, wide, {width});
  check_buffer(op, "sums", sums, ScalarType::Double, {1 + width});
  check_rows(op, "target", target);
  check_scratch(op, scratch, match_blocks(ids.size(0)), 1 + width);
  MatchError args{};
  args.dtype = dtype_of(op, pred);
  args.kind = absolute ? LossKind::kL1 : LossKind::kL2;
  args.cells = cells_of(op, ids, weight.size(0), rows, columns);
  args.side = side;
  args.length = target.size(2);
  args.width = width;
  args.weight = weight.const_data_ptr();
  args.weight_image_stride = weight.stride(0);
  args.weight_cell_stride = weight.stride(1);
  args.target = target.const_data_ptr();
  args.target_image_stride = target.stride(0);
  args.target_cell_stride = target.stride(1);
  args.bias = bias.const_data_ptr();
  args.pred = pred.mutable_data_ptr();
  args.sums = sums.mutable_data_ptr<double>();
  args.scratch = scratch.mutable_data_ptr<double>();
  match_error(args, torch_pool(), simd_in_use());
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) {
  library.impl("match_masked", TORCH_BOX(&bimkern::match_masked_op));
  library.impl("match_rows", TORCH_BOX(&bimkern::match_rows_op));
  library.impl("match_rows_bwd", TORCH_BOX(&bimkern::match_rows_bwd_op));
  library.impl("match_norm", TORCH_BOX(&bimkern::match_norm_op));
  library.impl("match_norm_bwd", TORCH_BOX(&bimkern::match_norm_bwd_op));
  library.impl("match_error", TORCH_BOX(&bimkern::match_error_op));
}
