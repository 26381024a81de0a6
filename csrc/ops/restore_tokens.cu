// CUDA kernels of restore_tokens.h, all bound by memory.
//
// forward: a warp per token, or prefix row, of four images: it reads the position and the mask token for all of them,
// and the visible rows of those that keep the token. Its block looks eight tokens up in keep. Reads the visible rows
// once, writes the result once; what all images share comes from the caches. backward: a block per row and slice of D,
// its threads in kLanes sets that share the images out. One pass over the gradient: rows of kept tokens are copied out,
// every row is added to the sum of its token over the images that mask it or over those that keep it. A small kernel
// finds the positions of all tokens before, so that a token's position and its row are loaded at once. The sums of the
// sets are added in their order, and another small kernel adds the masked sums of all tokens: no sum depends on timing.
#include "ops/keep_cuda.h"
#include "ops/restore_tokens.h"

namespace bimkern {
namespace {

constexpr int kImagesPerBlock = 4;  // of the forward: they share the position of a token
constexpr int kLanes = 8;           // sets of threads, each with its share of the images
constexpr int kImagesPerLane = 4;   // loads in flight per thread
constexpr int kBatch = kLanes * kImagesPerLane;
constexpr int kBlocksPerSM = 3;  // at least: caps the registers
constexpr int kBankBytes = 128;  // that the banks of shared memory give at once
constexpr int kTokenLanes = 32;  // threads that share the tokens out in the last sum
constexpr int64_t kMaxBlocksX = 0x7fffffff;
constexpr int64_t kMaxBlocksY = 0xffff;

template <typename T, int kPack>
__global__ void __launch_bounds__(kWarp* kRowsPerBlock, kBlocksPerSM)
    restore_kernel(RestoreTokens args, unsigned blocks_per_image) {
  using P = Pack<T, kPack>;
  __shared__ BlockPositions positions[kImagesPerBlock];
  const TokenSizes size = args.size;
  const int64_t image = int64_t{blockIdx.x / blocks_per_image} * kImagesPerBlock;
  const int64_t first = int64_t{blockIdx.x % blocks_per_image} * kRowsPerBlock - size.prefix;  // negative: a prefix row
  block_find(args.keep, size, image, first, positions);
  const int64_t token = first + threadIdx.y;
  if (token >= size.tokens) {
    return;
  }
  const int packs = static_cast<int>(size.width / kPack);
  const int images = static_cast<int>(min(size.images - image, int64_t{kImagesPerBlock}));
  const P* row[kImagesPerBlock];  // null: masked
#pragma unroll
  for (int i = 0; i < kImagesPerBlock; ++i) {
    const int64_t position = token < 0 ? token : position_of(positions[i], threadIdx.y);
    const T* visible = static_cast<const T*>(args.visible) + (image + i) * args.visible_image_stride +
                       (size.prefix + position) * args.visible_token_stride;
    row[i] = i < images && (token < 0 || position >= 0) ? reinterpret_cast<const P*>(visible) : nullptr;
  }
  const bool adds = token >= 0 && args.pos != nullptr;
  const auto* mask_token = static_cast<const P*>(args.mask_token);
  const T* pos = adds ? static_cast<const T*>(args.pos) + token * args.pos_token_stride : nullptr;
  const int64_t image_packs = (size.prefix + size.tokens) * packs;  // of out
  auto* out = static_cast<P*>(args.out) + image * image_packs + (size.prefix + token) * packs;
  for (int column = threadIdx.x; column < packs; column += kWarp) {
    // All loads come before the stores: the compiler may not move them, as out might be where the next are read.
    P value[kImagesPerBlock];
    P masked{};
    P shift{};
    if (token >= 0) {
      masked = mask_token[column];
    }
    if (adds) {
      shift = reinterpret_cast<const P*>(pos)[column];
    }
#pragma unroll
    for (int i = 0; i < kImagesPerBlock; ++i) {
      value[i] = masked;
      if (row[i] != nullptr) {
        value[i] = row[i][column];
      }
    }
    P* to = out + column;
#pragma unroll
    for (int i = 0; i < kImagesPerBlock; ++i) {
      if (i < images) {
        *to = adds ? add(value[i], shift) : value[i];
      }
      to += image_packs;
    }
  }
  for (int i = 0; i < images; ++i) {
    if (token >= 0 && position_of(positions[i], threadIdx.y) == kWrong) {
      fill_row(filled_with<T, kPack>(NAN), packs, out + i * image_packs);
    }
  }
}

template <typename T, int kPack>
__global__ void __launch_bounds__(kWarp* kLanes, kBlocksPerSM) restore_bwd_kernel(RestoreTokensBwd args) {
  using P = Pack<T, kPack>;
  using A = Arithmetic<T>;
  using Sum = typename A::type;
  constexpr int kColumns = kWarp * kPack;  // of D, per block
  // Element by element of the packs, so that lanes that store theirs meet different banks. The gap does the same for
  // lanes that read the elements of one pack after the other.
  constexpr int kSpread = kWarp + kBankBytes / static_cast<int>(sizeof(Sum)) / kPack;
  __shared__ int32_t positions[kBatch];
  __shared__ Sum lane_sums[2][kLanes][kPack][kSpread];
  const TokenSizes size = args.size;
  const int64_t row = blockIdx.x;
  const int64_t token = row - size.prefix;
  const int64_t packs = size.width / kPack;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kWarp + threadIdx.x;
  const auto* grad = static_cast<const T*>(args.grad_out) + row * args.grad_token_stride;
  auto* grad_visible = static_cast<T*>(args.grad_visible);
  Sum masked_sum[kPack] = {};
  Sum kept_sum[kPack] = {};
  for (int64_t first = 0; first < size.images; first += kBatch) {
    P loaded[kImagesPerLane] = {};
#pragma unroll
    for (int i = 0; i < kImagesPerLane; ++i) {
      const int64_t image = first + i * kLanes + threadIdx.y;
      if (image < size.images && column < packs) {
        loaded[i] = reinterpret_cast<const P*>(grad + image * args.grad_image_stride)[column];
      }
    }
    const int thread = threadIdx.y * kWarp + threadIdx.x;
    if (thread < kBatch) {
      const int64_t image = first + thread;
      positions[thread] = token >= 0 && image < size.images ? args.positions[image * size.tokens + token] : kMasked;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kImagesPerLane; ++i) {
      const int64_t image = first + i * kLanes + threadIdx.y;
      if (image >= size.images || column >= packs) {
        continue;
      }
      int64_t position = token < 0 ? token : positions[i * kLanes + threadIdx.y];
      if (token >= 0 && position == kWrong) {
        loaded[i] = filled_with<T, kPack>(NAN);
        position = token < size.kept ? token : kMasked;  // so all K rows of grad_visible are NaN, since K <= N
      }
      if (token < 0 || position >= 0) {
        const int64_t to = (image * (size.prefix + size.kept) + size.prefix + position) * size.width;
        reinterpret_cast<P*>(grad_visible + to)[column] = loaded[i];
      }
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const Sum value = A::load(loaded[i].value[j]);
        masked_sum[j] += position < 0 ? value : Sum{0};
        kept_sum[j] += position < 0 ? Sum{0} : value;
      }
    }
    __syncthreads();
  }
  if (token < 0) {
    return;
  }
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    lane_sums[0][threadIdx.y][j][threadIdx.x] = masked_sum[j];
    lane_sums[1][threadIdx.y][j][threadIdx.x] = kept_sum[j];
  }
  __syncthreads();
  for (int i = threadIdx.y * kWarp + threadIdx.x; i < kColumns; i += kWarp * kLanes) {
    const int64_t d = static_cast<int64_t>(blockIdx.y) * kColumns + i;
    if (d >= size.width) {
      return;
    }
    Sum masked{0};
    Sum kept{0};
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      masked += lane_sums[0][lane][i % kPack][i / kPack];
      kept += lane_sums[1][lane][i % kPack][i / kPack];
    }
    static_cast<Sum*>(args.masked_sums)[token * size.width + d] = masked;
    if (args.grad_pos != nullptr) {
      static_cast<T*>(args.grad_pos)[token * size.width + d] = A::store(masked + kept);
    }
  }
}

// A block per kWarp columns: kTokenLanes rows of threads share the tokens out. In float64: these sums are N times as
// long as those over images.
template <typename T>
__global__ void __launch_bounds__(kWarp* kTokenLanes) mask_token_kernel(RestoreTokensBwd args) {
  using A = Arithmetic<T>;
  using Sum = typename A::type;
  __shared__ double lane_sums[kTokenLanes][kWarp];
  const TokenSizes size = args.size;
  const int64_t d = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const auto* masked_sums = static_cast<const Sum*>(args.masked_sums);
  double sum = 0;
  if (d < size.width) {
#pragma unroll 8
    for (int64_t token = threadIdx.y; token < size.tokens; token += kTokenLanes) {
      sum += masked_sums[token * size.width + d];
    }
  }
  lane_sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || d >= size.width) {
    return;
  }
  double total = 0;
#pragma unroll
  for (int lane = 0; lane < kTokenLanes; ++lane) {
    total += lane_sums[lane][threadIdx.x];
  }
  static_cast<T*>(args.grad_mask_token)[d] = A::store(static_cast<Sum>(total));
}

template <typename T>
void launch_restore(const RestoreTokens& args, cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(T);
  const int64_t rows = args.size.images * (args.size.prefix + args.size.tokens);
  if (rows == 0 || args.size.width == 0) {
    return;
  }
  const int64_t blocks_per_image = ceil_div<int64_t>(args.size.prefix + args.size.tokens, kRowsPerBlock);
  const int64_t blocks = blocks_per_image * ceil_div<int64_t>(args.size.images, kImagesPerBlock);
  BIMKERN_CHECK(blocks <= kMaxBlocksX, "restore_tokens: at most ", kMaxBlocksX / blocks_per_image * kImagesPerBlock,
                " images fit a launch, got ", args.size.images);
  const bool packed = is_packable(args.visible, args.visible_image_stride * kSize) &&
                      is_packable(args.visible, args.visible_token_stride * kSize) && is_packable(args.mask_token, 0) &&
                      is_packable(args.out, args.size.width * kSize) &&
                      is_packable(args.pos, args.pos_token_stride * kSize);
  const auto kernel = packed ? restore_kernel<T, kPackBytes / kSize> : restore_kernel<T, 1>;
  kernel<<<static_cast<unsigned>(blocks), dim3(kWarp, kRowsPerBlock), 0, stream>>>(
      args, static_cast<unsigned>(blocks_per_image));
  check_launch("restore_tokens");
}

template <typename T>
void launch_restore_bwd(const RestoreTokensBwd& args, cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(T);
  const int64_t rows = args.size.prefix + args.size.tokens;
  if (args.size.width == 0) {
    return;
  }
  if (rows > 0) {
    const bool packed = is_packable(args.grad_out, args.grad_image_stride * kSize) &&
                        is_packable(args.grad_out, args.grad_token_stride * kSize) &&
                        is_packable(args.grad_visible, args.size.width * kSize);
    const int64_t pack = packed ? kPackBytes / kSize : 1;
    const int64_t slices = ceil_div<int64_t>(args.size.width, pack * kWarp);
    BIMKERN_CHECK(rows <= kMaxBlocksX && slices <= kMaxBlocksY, "restore_tokens_bwd: at most ", kMaxBlocksX,
                  " rows and ", kMaxBlocksY * pack * kWarp, " columns fit a launch, got ", rows, " and ",
                  args.size.width);
    const auto kernel = packed ? restore_bwd_kernel<T, kPackBytes / kSize> : restore_bwd_kernel<T, 1>;
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(slices));
    if (args.size.images > 0) {
      positions_kernel<<<image_blocks("restore_tokens_bwd", args.size), kWarp, 0, stream>>>(args.keep, args.size,
                                                                                            args.positions);
    }
    kernel<<<grid, dim3(kWarp, kLanes), 0, stream>>>(args);
    check_launch("restore_tokens_bwd");
  }
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(args.size.width, kWarp));
  mask_token_kernel<T><<<blocks, dim3(kWarp, kTokenLanes), 0, stream>>>(args);
  check_launch("restore_tokens_bwd");
}

}  // namespace

void restore_tokens_cuda(const RestoreTokens& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch_restore<decltype(type)>(args, static_cast<cudaStream_t>(stream)); });
}

void restore_tokens_bwd_cuda(const RestoreTokensBwd& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch_restore_bwd<decltype(type)>(args, static_cast<cudaStream_t>(stream)); });
}

}  // namespace bimkern
