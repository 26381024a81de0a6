// CUDA kernel of scale_mask.h, bound by memory: writes the result once; what it reads repeatedly comes from the caches.
//
// A thread per value of the result; a block takes values of one image. Its divisions are of 32 bits: those of 64 are
// calls of a routine.
#include "core/cuda.h"
#include "ops/scale_mask.h"

namespace bimkern {
namespace {

constexpr int kThreads = 64;  // small, since an image may have few values
constexpr int64_t kMaxBlocks = 0x7fffffff;
constexpr int64_t kMaxValues = int64_t{1} << 31;  // of an image, before and after

// What the divisions take.
struct Squares {
  uint32_t width, values;  // of the result of an image
  uint32_t average, repeat;
  uint32_t blocks;  // of an image
};

template <typename T>
__global__ void __launch_bounds__(kThreads) scale_mask_kernel(ScaleMask args, Squares squares) {
  const int64_t image = blockIdx.x / squares.blocks;
  const uint32_t i = blockIdx.x % squares.blocks * kThreads + threadIdx.x;
  if (i >= squares.values) {
    return;
  }
  const uint32_t row = i / squares.width / squares.repeat * squares.average;
  const uint32_t column = i % squares.width / squares.repeat * squares.average;
  const T* mask = static_cast<const T*>(args.mask) + image * args.image_stride;
  static_cast<T*>(args.out)[image * squares.values + i] =
      mean_of_square(mask + row * args.columns + column, args.columns, args.average);
}

template <typename T>
void launch_scale_mask(const ScaleMask& args, cudaStream_t stream) {
  const int64_t width = args.columns / args.average * args.repeat;
  const int64_t values = args.rows / args.average * args.repeat * width;
  if (args.images * values == 0) {
    return;
  }
  BIMKERN_CHECK(values < kMaxValues && args.rows * args.columns < kMaxValues, "scale_mask: a mask of ", args.rows,
                " x ", args.columns, " must have fewer than ", kMaxValues, " values before and after, got ", values);
  const int64_t blocks = ceil_div<int64_t>(values, kThreads);
  BIMKERN_CHECK(args.images <= kMaxBlocks / blocks, "scale_mask: at most ", kMaxBlocks / blocks,
                " images fit a launch, got ", args.images);
  const Squares squares{static_cast<uint32_t>(width), static_cast<uint32_t>(values),
                        static_cast<uint32_t>(args.average), static_cast<uint32_t>(args.repeat),
                        static_cast<uint32_t>(blocks)};
  scale_mask_kernel<T><<<static_cast<unsigned>(args.images * blocks), kThreads, 0, stream>>>(args, squares);
  check_launch("scale_mask");
}

}  // namespace

void scale_mask_cuda(const ScaleMask& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch_scale_mask<decltype(type)>(args, static_cast<cudaStream_t>(stream)); });
}

}  // namespace bimkern
