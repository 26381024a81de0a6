// torch op pixel_targets on the CPU; bimkern/ops/_triton has that on CUDA. Schema: bimkern/ops/pixel_targets.py.
#include "ops/pixel_targets.h"

#include "loss.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

Tensor pixel_targets_op(const Tensor& images, const std::optional<Tensor>& mean, const std::optional<Tensor>& std,
                        int64_t patch, bool normalize, ScalarType dtype) {
  const char* op = "pixel_targets";
  PixelTargets args{};
  args.patches = patches_of(op, images, mean, std, patch, normalize, dtype);
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": dtype must be float32 or float64");
  const Patches& patches = args.patches;
  Tensor out = make_empty(images, {patches.images, patches.rows * patches.columns, patches.length()}, dtype);
  args.dtype = dtype_of(op, out);
  args.out = out.mutable_data_ptr();
  pixel_targets(args, torch_pool(), simd_in_use());
  return out;
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) {
  library.impl("pixel_targets", TORCH_BOX(&bimkern::pixel_targets_op));
}
