// CUDA kernel of scale_mask.h, bound by memory: writes the result once; what it reads repeatedly comes from the caches.
//
// A thread per value of the result.
#include "core/cuda.h"
#include "ops/scale_mask.h"

namespace bimkern {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 0x7fffffff;

template <typename T>
__global__ void __launch_bounds__(kThreads) scale_mask_kernel(ScaleMask args, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) {
    return;
  }
  const int64_t width = args.columns / args.average * args.repeat;
  const int64_t height = args.rows / args.average * args.repeat;
  const int64_t row = i / width % height / args.repeat * args.average;
  const int64_t column = i % width / args.repeat * args.average;
  const T* mask = static_cast<const T*>(args.mask) + i / width / height * args.image_stride;
  static_cast<T*>(args.out)[i] = mean_of_square(mask + row * args.columns + column, args.columns, args.average);
}

template <typename T>
void launch_scale_mask(const ScaleMask& args, cudaStream_t stream) {
  const int64_t height = args.rows / args.average * args.repeat;
  const int64_t width = args.columns / args.average * args.repeat;
  const int64_t count = args.images * height * width;
  if (count == 0) {
    return;
  }
  const int64_t blocks = ceil_div<int64_t>(count, kThreads);
  BIMKERN_CHECK(blocks <= kMaxBlocks, "scale_mask: at most ", kMaxBlocks * kThreads, " values fit a launch, got ",
                count);
  scale_mask_kernel<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args, count);
  check_launch("scale_mask");
}

}  // namespace

void scale_mask_cuda(const ScaleMask& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch_scale_mask<decltype(type)>(args, static_cast<cudaStream_t>(stream)); });
}

}  // namespace bimkern
