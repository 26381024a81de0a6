// torch op random_keep, with and without a parent. Schemas: bimkern/ops/random_keep.py.
#include "ops/random_keep.h"

#include "keep.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

RandomKeep args_of(const Tensor& sample_ids, int64_t num_tokens, int64_t num_candidates, int64_t num_keep, int64_t seed,
                   int64_t step) {
  const char* op = "random_keep";
  STD_TORCH_CHECK(sample_ids.dim() == 1 && sample_ids.scalar_type() == ScalarType::Long, op,
                  ": sample_ids must be [B], int64");
  STD_TORCH_CHECK(num_tokens >= 0 && num_tokens <= kMaxCandidates, op, ": num_tokens must be in [0, 2**31), got ",
                  num_tokens);
  STD_TORCH_CHECK(num_keep >= 0 && num_keep <= num_candidates, op, ": num_keep must be in [0, ", num_candidates,
                  "], got ", num_keep);
  const auto bits = static_cast<uint64_t>(seed);
  RandomKeep args{};
  args.images = sample_ids.size(0);
  args.tokens = num_tokens;
  args.candidates = num_candidates;
  args.kept = num_keep;
  args.key = step_key(PhiloxKey{{static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)}},
                      static_cast<uint64_t>(step));
  args.sample_ids = sample_ids.const_data_ptr<int64_t>();
  args.sample_stride = sample_ids.stride(0);
  return args;
}

void run(const Tensor& sample_ids, const RandomKeep& args) {
  if (sample_ids.is_cuda()) {
    const CudaScope cuda(sample_ids);
    random_keep_cuda(args, cuda.stream());
  } else {
    random_keep(args, torch_pool(), simd_in_use());
  }
}

Tensor random_keep_op(const Tensor& sample_ids, int64_t num_tokens, int64_t num_keep, int64_t seed, int64_t step) {
  RandomKeep args = args_of(sample_ids, num_tokens, num_tokens, num_keep, seed, step);
  Tensor keep = make_empty(sample_ids, {args.images, num_keep});
  args.keep = keep.mutable_data_ptr<int64_t>();
  run(sample_ids, args);
  return keep;
}

std::tuple<Tensor, Tensor> random_keep_parent_op(const Tensor& sample_ids, int64_t num_tokens, int64_t num_keep,
                                                 int64_t seed, const Tensor& parent, int64_t step) {
  const char* op = "random_keep";
  STD_TORCH_CHECK(parent.dim() == 2 && parent.scalar_type() == ScalarType::Long, op, ": parent must be [B, P], int64");
  STD_TORCH_CHECK(parent.size(1) <= kMaxCandidates, op, ": parent must hold less than 2**31 ids per image, got ",
                  parent.size(1));
  RandomKeep args = args_of(sample_ids, num_tokens, parent.size(1), num_keep, seed, step);
  STD_TORCH_CHECK(parent.size(0) == args.images && same_device(parent, sample_ids), op,
                  ": parent must have the images and the device of sample_ids");
  Tensor keep = make_empty(sample_ids, {args.images, num_keep});
  Tensor within = make_empty(sample_ids, {args.images, num_keep});
  args.parent = keep_of(parent);
  args.keep = keep.mutable_data_ptr<int64_t>();
  args.within = within.mutable_data_ptr<int64_t>();
  run(sample_ids, args);
  return {keep, within};
}

void register_ops(torch::stable::detail::StableLibrary& library) {
  library.impl("random_keep", TORCH_BOX(&random_keep_op));
  library.impl("random_keep.parent", TORCH_BOX(&random_keep_parent_op));
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) { bimkern::register_ops(library); }
STABLE_TORCH_LIBRARY_IMPL(bimkern, CUDA, library) { bimkern::register_ops(library); }
