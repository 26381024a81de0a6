// CUDA kernels of gather_tokens.h, all bound by memory.
//
// gather: a warp per row of the result; reads the kept rows, their positions (from L2 after the first image) and ids.
// bwd: a warp per row of the result; its block looks eight tokens up in keep, then it copies or clears: one pass.
// bwd_pos: a block per token and slice of D; its threads read the token's position in one image each, which a small
// kernel found before, then add the rows in the order of the images, so the sum does not depend on the launch.
// bwd of several masks: the same per image, over its masks.
#include "ops/gather_tokens.h"
#include "ops/keep_cuda.h"

namespace bimkern {
namespace {

constexpr int kSumThreads = 128;
constexpr int64_t kMaxBlocksX = 0x7fffffff;

// out = row + pos, by a warp: see copy_row.
template <typename T, int kPack>
__device__ __forceinline__ void add_row(const Pack<T, kPack>* row, const Pack<T, kPack>* pos, int packs,
                                        Pack<T, kPack>* out) {
  constexpr int kPairs = kInFlight / 2;
  for (int first = threadIdx.x; first < packs; first += kPairs * kWarp) {
    Pack<T, kPack> loaded[kPairs];
    Pack<T, kPack> shift[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (first + i * kWarp < packs) {
        loaded[i] = row[first + i * kWarp];
        shift[i] = pos[first + i * kWarp];
      }
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if (first + i * kWarp < packs) {
        out[first + i * kWarp] = add(loaded[i], shift[i]);
      }
    }
  }
}

template <typename T, int kPack>
__global__ void gather_kernel(GatherTokens args) {
  using P = Pack<T, kPack>;
  const TokenSizes size = args.size;
  const int64_t rows = size.prefix + size.kept;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.y;
  if (row >= size.images * rows) {
    return;
  }
  const int64_t image = row / rows;
  const int64_t position = row % rows - size.prefix;
  const int64_t* ids = args.keep.ids + image * args.keep.image_stride;
  const int64_t id = position < 0 ? position : ids[position * args.keep.token_stride];
  auto* out = reinterpret_cast<P*>(static_cast<T*>(args.out) + row * size.width);
  const int packs = static_cast<int>(size.width / kPack);
  if (position >= 0 && !is_token(id, size)) {
    fill_row(filled_with<T, kPack>(NAN), packs, out);
    return;
  }
  const int64_t source_image = args.masks == 1 ? image : image % (size.images / args.masks);
  const auto* source =
      reinterpret_cast<const P*>(static_cast<const T*>(args.tokens) + source_image * args.tokens_image_stride +
                                 (size.prefix + id) * args.tokens_token_stride);
  if (position < 0 || args.pos == nullptr) {
    copy_row(source, packs, out);
    return;
  }
  add_row(source, reinterpret_cast<const P*>(static_cast<const T*>(args.pos) + id * args.pos_token_stride), packs, out);
}

template <typename T, int kPack>
__global__ void scatter_kernel(GatherTokensBwd args, unsigned blocks_per_image) {
  using P = Pack<T, kPack>;
  __shared__ BlockPositions positions[1];
  const TokenSizes size = args.size;
  const int64_t image = blockIdx.x / blocks_per_image;
  const int64_t first = int64_t{blockIdx.x % blocks_per_image} * kRowsPerBlock - size.prefix;  // negative: a prefix row
  block_find(args.keep, size, image, first, positions);
  const int64_t token = first + threadIdx.y;
  if (token >= size.tokens) {
    return;
  }
  const int64_t position = token < 0 ? token : position_of(positions[0], threadIdx.y);
  const int64_t row = image * (size.prefix + size.tokens) + size.prefix + token;
  auto* out = reinterpret_cast<P*>(static_cast<T*>(args.result) + row * size.width);
  const int packs = static_cast<int>(size.width / kPack);
  if (token >= 0 && position < 0) {
    fill_row(filled_with<T, kPack>(position == kWrong ? NAN : 0.0f), packs, out);
    return;
  }
  const T* source = static_cast<const T*>(args.grad_out) + image * args.grad_image_stride +
                    (size.prefix + position) * args.grad_token_stride;
  copy_row(reinterpret_cast<const P*>(source), packs, out);
}

// Images group, group + groups, ... are added up, whose rows [first, first + rows) of R+N the result has.
template <typename T, int kPack>
__global__ void sum_kernel(GatherTokensBwd args, int64_t groups, int64_t first_row) {
  using P = Pack<T, kPack>;
  using A = Arithmetic<T>;
  __shared__ int32_t from[kSumThreads];  // which row of grad, kMasked or kWrong
  const TokenSizes size = args.size;
  const int64_t rows = size.prefix + size.tokens - first_row;
  const int64_t group = blockIdx.x / rows;
  const int64_t row = first_row + blockIdx.x % rows;
  const int64_t members = size.images / groups;
  const int64_t packs = size.width / kPack;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * kSumThreads + threadIdx.x;
  const auto* grad = static_cast<const T*>(args.grad_out);
  bool empty = args.masks > 1;
  typename A::type sum[kPack];
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    sum[j] = empty ? -0.0f : 0.0f;  // what one mask keeps is a copy, its zeros with their sign
  }
  for (int64_t first = 0; first < members; first += kSumThreads) {
    const int64_t mine = first + threadIdx.x;
    if (row < size.prefix) {
      from[threadIdx.x] = static_cast<int32_t>(row);
    } else if (mine < members) {
      const int32_t position = args.positions[(group + mine * groups) * size.tokens + row - size.prefix];
      from[threadIdx.x] = position < 0 ? position : static_cast<int32_t>(size.prefix) + position;
    }
    __syncthreads();
    const int count = static_cast<int>(min(members - first, int64_t{kSumThreads}));
    for (int i = 0; i < count && column < packs; ++i) {
      if (from[i] == kMasked) {
        continue;
      }
      empty = false;
      P pack = filled_with<T, kPack>(NAN);
      if (from[i] != kWrong) {
        pack = reinterpret_cast<const P*>(grad + (group + (first + i) * groups) * args.grad_image_stride +
                                          from[i] * args.grad_token_stride)[column];
      }
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        sum[j] += A::load(pack.value[j]);
      }
    }
    __syncthreads();
  }
  if (column < packs) {
    P pack;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      pack.value[j] = A::store(empty ? 0 : sum[j]);
    }
    reinterpret_cast<P*>(static_cast<T*>(args.result) + int64_t{blockIdx.x} * size.width)[column] = pack;
  }
}

unsigned row_blocks(const char* op, int64_t rows) {
  const int64_t blocks = ceil_div<int64_t>(rows, kRowsPerBlock);
  BIMKERN_CHECK(blocks <= kMaxBlocksX, op, ": at most ", kMaxBlocksX * kRowsPerBlock, " rows fit a launch, got ", rows);
  return static_cast<unsigned>(blocks);
}

bool rows_packable(const GatherTokensBwd& args, int64_t size) {
  return is_packable(args.grad_out, args.grad_image_stride * size) &&
         is_packable(args.grad_out, args.grad_token_stride * size) && is_packable(args.result, args.size.width * size);
}

template <typename T>
void launch_gather(const GatherTokens& args, cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(T);
  const int64_t rows = args.size.images * (args.size.prefix + args.size.kept);
  if (rows == 0 || args.size.width == 0) {
    return;
  }
  const bool packed = is_packable(args.tokens, args.tokens_image_stride * kSize) &&
                      is_packable(args.tokens, args.tokens_token_stride * kSize) &&
                      is_packable(args.out, args.size.width * kSize) &&
                      is_packable(args.pos, args.pos_token_stride * kSize);
  const auto kernel = packed ? gather_kernel<T, kPackBytes / kSize> : gather_kernel<T, 1>;
  kernel<<<row_blocks("gather_tokens", rows), dim3(kWarp, kRowsPerBlock), 0, stream>>>(args);
  check_launch("gather_tokens");
}

template <typename T>
void launch_scatter(const GatherTokensBwd& args, cudaStream_t stream) {
  const int64_t rows = args.size.images * (args.size.prefix + args.size.tokens);
  if (rows == 0 || args.size.width == 0) {
    return;
  }
  const int64_t blocks_per_image = ceil_div<int64_t>(args.size.prefix + args.size.tokens, kRowsPerBlock);
  BIMKERN_CHECK(args.size.images * blocks_per_image <= kMaxBlocksX, "gather_tokens_bwd: at most ",
                kMaxBlocksX / blocks_per_image, " images fit a launch, got ", args.size.images);
  const auto kernel = rows_packable(args, sizeof(T)) ? scatter_kernel<T, kPackBytes / sizeof(T)> : scatter_kernel<T, 1>;
  kernel<<<static_cast<unsigned>(args.size.images * blocks_per_image), dim3(kWarp, kRowsPerBlock), 0, stream>>>(
      args, static_cast<unsigned>(blocks_per_image));
  check_launch("gather_tokens_bwd");
}

template <typename T>
void launch_sum(const char* op, const GatherTokensBwd& args, int64_t groups, int64_t first_row, cudaStream_t stream) {
  const int64_t rows = groups * (args.size.prefix + args.size.tokens - first_row);
  if (rows == 0 || args.size.width == 0) {
    return;
  }
  BIMKERN_CHECK(rows <= kMaxBlocksX, op, ": at most ", kMaxBlocksX, " rows fit a launch, got ", rows);
  const bool packed = rows_packable(args, sizeof(T));
  const int64_t packs = packed ? args.size.width * static_cast<int64_t>(sizeof(T)) / kPackBytes : args.size.width;
  const int64_t slices = ceil_div<int64_t>(packs, kSumThreads);
  BIMKERN_CHECK(slices <= 0xffff, op, ": D must fit 65535 slices of 128 threads, got ", slices);
  const auto kernel = packed ? sum_kernel<T, kPackBytes / sizeof(T)> : sum_kernel<T, 1>;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(slices));
  if (args.size.images > 0) {
    positions_kernel<<<image_blocks(op, args.size), kWarp, 0, stream>>>(args.keep, args.size, args.positions);
  }
  kernel<<<grid, kSumThreads, 0, stream>>>(args, groups, first_row);
  check_launch(op);
}

}  // namespace

void gather_tokens_cuda(const GatherTokens& args, void* stream) {
  dispatch(args.dtype, [&](auto type) { launch_gather<decltype(type)>(args, static_cast<cudaStream_t>(stream)); });
}

void gather_tokens_bwd_cuda(const GatherTokensBwd& args, void* stream) {
  dispatch(args.dtype, [&](auto type) {
    if (args.masks == 1) {
      launch_scatter<decltype(type)>(args, static_cast<cudaStream_t>(stream));
    } else {
      launch_sum<decltype(type)>("gather_tokens_bwd", args, args.size.images / args.masks, 0,
                                 static_cast<cudaStream_t>(stream));
    }
  });
}

void gather_tokens_bwd_pos_cuda(const GatherTokensBwd& args, void* stream) {
  dispatch(args.dtype, [&](auto type) {
    launch_sum<decltype(type)>("gather_tokens_bwd_pos", args, 1, args.size.prefix, static_cast<cudaStream_t>(stream));
  });
}

}  // namespace bimkern
