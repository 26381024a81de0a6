// torch op keep_to_mask. Schema: bimkern/ops/keep_to_mask.py.
#include "ops/keep_to_mask.h"

#include "keep.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

Tensor keep_to_mask_op(const Tensor& keep, int64_t num_tokens) {
  const char* op = "keep_to_mask";
  STD_TORCH_CHECK(keep.dim() == 2 && keep.scalar_type() == ScalarType::Long, op, ": keep must be [B, K], int64");
  STD_TORCH_CHECK(num_tokens >= 0, op, ": num_tokens must be at least 0, got ", num_tokens);
  Tensor mask = make_empty(keep, {keep.size(0), num_tokens}, ScalarType::Float);
  const KeepToMask args{keep.size(0), num_tokens, keep.size(1), keep_of(keep), mask.mutable_data_ptr<float>()};
  if (keep.is_cuda()) {
    const CudaScope cuda(keep);
    keep_to_mask_cuda(args, cuda.stream());
  } else {
    keep_to_mask(args, torch_pool());
  }
  return mask;
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) { library.impl("keep_to_mask", TORCH_BOX(&bimkern::keep_to_mask_op)); }
STABLE_TORCH_LIBRARY_IMPL(bimkern, CUDA, library) {
  library.impl("keep_to_mask", TORCH_BOX(&bimkern::keep_to_mask_op));
}
