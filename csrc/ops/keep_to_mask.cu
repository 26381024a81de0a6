// CUDA kernel of keep_to_mask.h, bound by memory: reads the ids and writes the mask once.
//
// A block per image: its threads fill the row with ones, then put the zeros into it while it lies in the cache.
#include "ops/keep_cuda.h"
#include "ops/keep_to_mask.h"

namespace bimkern {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 0x7fffffff;

__global__ void __launch_bounds__(kThreads) keep_to_mask_kernel(KeepToMask args) {
  __shared__ int wrong;
  const TokenSizes size{args.images, 0, args.tokens, args.kept, 0};
  const int64_t image = blockIdx.x;
  if (threadIdx.x == 0) {
    wrong = 0;
  }
  float* row = args.mask + image * args.tokens;
  for (int64_t token = threadIdx.x; token < args.tokens; token += kThreads) {
    row[token] = 1.0f;
  }
  __syncthreads();
  const int64_t* ids = args.keep.ids + image * args.keep.image_stride;
  for (int64_t k = threadIdx.x; k < args.kept; k += kThreads) {
    const int64_t id = ids[k * args.keep.token_stride];
    if (is_token(id, size)) {
      row[id] = 0.0f;
    } else {
      atomicExch(&wrong, 1);
    }
  }
  __syncthreads();
  for (int64_t token = threadIdx.x; wrong && token < args.tokens; token += kThreads) {
    row[token] = NAN;
  }
}

}  // namespace

void keep_to_mask_cuda(const KeepToMask& args, void* stream) {
  if (args.images == 0 || args.tokens == 0) {
    return;
  }
  BIMKERN_CHECK(args.images <= kMaxBlocks, "keep_to_mask: at most ", kMaxBlocks, " images fit a launch, got ",
                args.images);
  keep_to_mask_kernel<<<static_cast<unsigned>(args.images), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  check_launch("keep_to_mask");
}

}  // namespace bimkern
