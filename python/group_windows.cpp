// torch op group_windows, for the CPU alone. Schema: bimkern/ops/group_windows.py.
#include "ops/group_windows.h"

#include "keep.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

WindowAxis axis_of(const char* name, int64_t side, int64_t window, int64_t shift) {
  STD_TORCH_CHECK(side >= 1 && window >= 1 && window <= side && shift >= 0 && shift < window, "group_windows: ", name,
                  " must have 0 <= shift < window <= side, got ", shift, ", ", window, " and ", side);
  return {side, window, shift};
}

std::tuple<Tensor, Tensor, Tensor> group_windows_op(const Tensor& keep, int64_t rows, int64_t columns,
                                                    int64_t window_rows, int64_t window_columns, int64_t shift_rows,
                                                    int64_t shift_columns, bool published) {
  const char* op = "group_windows";
  STD_TORCH_CHECK(keep.dim() == 2 && keep.scalar_type() == ScalarType::Long, op, ": keep must be [S, T], int64");
  GroupWindows args{};
  args.rows = axis_of("rows", rows, window_rows, shift_rows);
  args.columns = axis_of("columns", columns, window_columns, shift_columns);
  STD_TORCH_CHECK(columns <= kMaxGridTokens / rows && keep.size(1) <= rows * columns, op,
                  ": grid must have T=", keep.size(1), " to 2**30 tokens, got (", rows, ", ", columns, ")");
  args.masks = keep.size(0);
  args.tokens = keep.size(1);
  args.published = published;
  args.keep = keep_of(keep);
  Tensor windows = make_empty(keep, {args.masks, args.tokens}, ScalarType::Int);
  Tensor positions = make_empty(keep, {args.masks, args.tokens}, ScalarType::Int);
  args.windows = windows.mutable_data_ptr<int32_t>();
  args.positions = positions.mutable_data_ptr<int32_t>();
  const WindowGrouping grouping = group_windows(args, torch_pool());
  Tensor members = make_empty(keep, {args.masks, grouping.groups, grouping.size}, ScalarType::Int);
  fill_groups(args, grouping, members.mutable_data_ptr<int32_t>(), torch_pool());
  return {members, windows, positions};
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) {
  library.impl("group_windows", TORCH_BOX(&bimkern::group_windows_op));
}
