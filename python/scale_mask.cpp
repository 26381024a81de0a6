// torch op scale_mask. Schema: bimkern/ops/scale_mask.py.
#include "ops/scale_mask.h"

#include "bridge.h"

namespace bimkern {
namespace {

// Of the sides of both grids and of the squares, exclusive: a square of this side still has less than 2**63 bytes.
constexpr int64_t kMaxSide = int64_t{1} << 30;

Tensor scale_mask_op(const Tensor& mask, int64_t rows, int64_t columns, int64_t average, int64_t repeat) {
  const char* op = "scale_mask";
  STD_TORCH_CHECK(rows < kMaxSide && columns < kMaxSide && average < kMaxSide && repeat < kMaxSide, op,
                  ": rows, columns, average and repeat must be below 2**30, got ", rows, ", ", columns, ", ", average,
                  " and ", repeat);
  STD_TORCH_CHECK(mask.dim() == 2 && rows >= 0 && columns >= 0 && mask.size(1) == rows * columns, op,
                  ": mask must be [B, N] with N=rows*columns, got rows=", rows, ", columns=", columns);
  STD_TORCH_CHECK(average >= 1 && repeat >= 1 && rows % average == 0 && columns % average == 0, op,
                  ": rows and columns must be multiples of average, and average and repeat at least 1, got average=",
                  average, ", repeat=", repeat);
  const int64_t out_rows = rows / average * repeat;
  const int64_t out_columns = columns / average * repeat;
  STD_TORCH_CHECK(out_rows < kMaxSide && out_columns < kMaxSide, op,
                  ": the result must have less than 2**30 rows and columns, got ", out_rows, " and ", out_columns);
  const Tensor values = with_contiguous_rows(mask);
  Tensor out = make_empty(mask, {mask.size(0), out_rows * out_columns});
  ScaleMask args{};
  args.dtype = dtype_of(op, mask);
  args.images = mask.size(0);
  args.rows = rows;
  args.columns = columns;
  args.average = average;
  args.repeat = repeat;
  args.mask = values.const_data_ptr();
  args.image_stride = values.stride(0);
  args.out = out.mutable_data_ptr();
  if (mask.is_cuda()) {
    const CudaScope cuda(mask);
    scale_mask_cuda(args, cuda.stream());
  } else {
    scale_mask(args, torch_pool());
  }
  return out;
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) { library.impl("scale_mask", TORCH_BOX(&bimkern::scale_mask_op)); }
STABLE_TORCH_LIBRARY_IMPL(bimkern, CUDA, library) { library.impl("scale_mask", TORCH_BOX(&bimkern::scale_mask_op)); }
