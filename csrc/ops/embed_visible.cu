// CUDA kernels of embed_visible.h, both bound by memory; a block per row of the result, its threads along the row.
//
// visible_patches: a thread makes 16 bytes of the row, from as many pixels that lie side by side: one load, one store.
// Reads the kept patches once (the caches fetch 32 bytes at a time, an image row of a patch may have fewer), writes the
// result once. Patch sizes and strides that do not allow this go pixel by pixel.
// add_embeddings: reads the product, writes the tokens, 16 bytes at a time; bias and positions come from the caches.
#include <algorithm>

#include "ops/embed_visible.h"
#include "ops/keep_cuda.h"

namespace bimkern {
namespace {

constexpr int64_t kMaxThreads = 256;
constexpr int64_t kMaxRows = 0x7fffffff;

template <typename From, typename T, int kPack>
__global__ void __launch_bounds__(kMaxThreads) visible_patches_kernel(VisiblePatches args) {
  using A = Normal<T>;
  using P = Pack<T, kPack>;
  using Pixels = Pack<From, kPack>;
  const TokenSizes size = args.size;
  const int64_t image = blockIdx.x / size.kept;
  const int64_t place = blockIdx.x % size.kept;
  const int64_t id = args.keep.ids[image * args.keep.image_stride + place * args.keep.token_stride];
  auto* out = reinterpret_cast<P*>(static_cast<T*>(args.out) + blockIdx.x * size.width);
  const int packs = static_cast<int>(size.width / kPack);
  if (!is_token(id, size)) {
    for (int i = threadIdx.x; i < packs; i += blockDim.x) {
      out[i] = filled_with<T, kPack>(NAN);
    }
    return;
  }
  const auto patch = static_cast<int>(args.patch);
  const From* corner = static_cast<const From*>(args.images) + image * args.image_stride +
                       id / args.columns * patch * args.row_stride + id % args.columns * patch * args.column_stride;
  const auto* mean = static_cast<const A*>(args.mean);
  const auto* std = static_cast<const A*>(args.std);
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    const int x = i * kPack % patch;
    const int line = i * kPack / patch;
    const int y = line % patch;
    const int c = line / patch;
    const Affine<A> affine = normalization<From>(mean, std, c);
    const From* from = corner + c * args.channel_stride + y * args.row_stride + x * args.column_stride;
    const Pixels pixels = *reinterpret_cast<const Pixels*>(from);
    P result;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      result.value[j] = Arithmetic<T>::store(normalized(pixels.value[j], affine));
    }
    out[i] = result;
  }
}

template <typename T, typename A, int kPack>
__global__ void __launch_bounds__(kMaxThreads) add_embeddings_kernel(AddEmbeddings args) {
  using P = Pack<A, kPack>;
  const TokenSizes size = args.size;
  const int64_t rows = size.prefix + size.kept;
  const int64_t image = blockIdx.x / rows;
  const int64_t place = blockIdx.x % rows - size.prefix;  // negative: a prefix row
  const int packs = static_cast<int>(size.width / kPack);
  auto* out = reinterpret_cast<P*>(static_cast<A*>(args.out) + blockIdx.x * size.width);
  if (place < 0) {
    const A* tokens = static_cast<const A*>(args.prefix);
    const auto* prefix = reinterpret_cast<const P*>(tokens + (size.prefix + place) * args.prefix_token_stride);
    for (int i = threadIdx.x; i < packs; i += blockDim.x) {
      out[i] = prefix[i];
    }
    return;
  }
  const auto* product = reinterpret_cast<const Pack<T, kPack>*>(static_cast<const T*>(args.product) +
                                                                (image * size.kept + place) * size.width);
  const auto* bias = static_cast<const P*>(args.bias);
  const P* pos = nullptr;
  if (args.pos != nullptr) {
    const int64_t id = args.keep.ids[image * args.keep.image_stride + place * args.keep.token_stride];
    if (is_token(id, size)) {  // else the product is NaN already
      pos = reinterpret_cast<const P*>(static_cast<const A*>(args.pos) + id * args.pos_token_stride);
    }
  }
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    const Pack<T, kPack> projected = product[i];
    const P shift = bias[i];
    const P position = pos == nullptr ? P{} : pos[i];
    P result;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const auto value = static_cast<A>(Arithmetic<T>::load(projected.value[j])) + shift.value[j];
      result.value[j] = pos == nullptr ? value : value + position.value[j];
    }
    out[i] = result;
  }
}

template <typename Kernel, typename Args>
void launch(Kernel kernel, const Args& args, int64_t rows, int64_t pack, cudaStream_t stream) {
  if (rows == 0 || args.size.width == 0) {
    return;
  }
  BIMKERN_CHECK(rows <= kMaxRows, "embed_visible: at most ", kMaxRows, " rows fit a launch, got ", rows);
  const int64_t warps = ceil_div<int64_t>(args.size.width / pack, kWarp);
  const auto threads = static_cast<unsigned>(std::min(kMaxThreads, warps * kWarp));
  kernel<<<static_cast<unsigned>(rows), threads, 0, stream>>>(args);
  check_launch("embed_visible");
}

template <typename From, typename T>
void launch_visible_patches(const VisiblePatches& args, cudaStream_t stream) {
  constexpr int64_t kPack = kPackBytes / sizeof(T);
  constexpr int64_t kPixelBytes = kPack * sizeof(From);
  const bool aligned = reinterpret_cast<uintptr_t>(args.images) % kPixelBytes == 0 && args.image_stride % kPack == 0 &&
                       args.channel_stride % kPack == 0 && args.row_stride % kPack == 0;
  const bool packed = aligned && args.column_stride == 1 && args.patch % kPack == 0 && is_packable(args.out, 0);
  launch(packed ? visible_patches_kernel<From, T, kPack> : visible_patches_kernel<From, T, 1>, args,
         args.size.images * args.size.kept, packed ? kPack : 1, stream);
}

template <typename T, typename A>
void launch_add_embeddings(const AddEmbeddings& args, cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(A);
  constexpr int64_t kPack = kPackBytes / kSize;
  constexpr int64_t kProductBytes = kPack * sizeof(T);
  const bool packed = reinterpret_cast<uintptr_t>(args.product) % kProductBytes == 0 &&
                      is_packable(args.out, args.size.width * kSize) && is_packable(args.bias, 0) &&
                      is_packable(args.pos, args.pos_token_stride * kSize) &&
                      is_packable(args.prefix, args.prefix_token_stride * kSize);
  launch(packed ? add_embeddings_kernel<T, A, kPack> : add_embeddings_kernel<T, A, 1>, args,
         args.size.images * (args.size.prefix + args.size.kept), packed ? kPack : 1, stream);
}

}  // namespace

void visible_patches_cuda(const VisiblePatches& args, void* stream) {
  dispatch_pixels(args.image_dtype, [&](auto pixel) {
    dispatch(args.dtype, [&](auto type) {
      launch_visible_patches<decltype(pixel), decltype(type)>(args, static_cast<cudaStream_t>(stream));
    });
  });
}

void add_embeddings_cuda(const AddEmbeddings& args, void* stream) {
  dispatch(args.product_dtype, [&](auto type) {
    dispatch_wide(args.dtype, [&](auto wide) {
      launch_add_embeddings<decltype(type), decltype(wide)>(args, static_cast<cudaStream_t>(stream));
    });
  });
}

}  // namespace bimkern
