// How the CUDA kernels find the position of a token in keep, which may be in any order. No id, whatever it is, is read
// or written through before it was compared with N, and nothing waits to tell of a wrong one: it is kWrong, of which
// the kernels make NaN.
#pragma once

#include <cmath>

#include "core/cuda.h"
#include "core/dtype.h"
#include "ops/keep.h"

namespace bimkern {

// Instead of a position: an id of the image is out of range, or the token is there twice.
constexpr int32_t kWrong = -2;

BIMKERN_HD bool is_token(int64_t id, const TokenSizes& size) { return id >= 0 && id < size.tokens; }

template <typename T, int kCount>
__device__ __forceinline__ Pack<T, kCount> filled_with(float value) {
  const T stored = Arithmetic<T>::store(value);
  Pack<T, kCount> pack;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    pack.value[i] = stored;
  }
  return pack;
}

template <typename T, int kCount>
__device__ __forceinline__ Pack<T, kCount> add(Pack<T, kCount> a, Pack<T, kCount> b) {  // by reference: read one by one
  using A = Arithmetic<T>;
  Pack<T, kCount> sum;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    sum.value[i] = A::store(A::load(a.value[i]) + A::load(b.value[i]));
  }
  return sum;
}

constexpr int kRowsPerBlock = 8;  // a warp each

// What a block knows of an image: the position of each of its tokens, and behind them whether an id is out of range.
using BlockPositions = int32_t[kRowsPerBlock + 1];

__device__ __forceinline__ int32_t position_of(const BlockPositions& positions, int row) {
  return positions[kRowsPerBlock] != 0 ? kWrong : positions[row];
}

// The positions of the tokens first, first + 1, ... in up to kImages images from image on, found by a block of kWarp x
// kRowsPerBlock threads, which reads each id once. With K=49 these are few bytes beside eight rows; with N=4096, K=1024
// and D=512 in bfloat16 they are as many as the rows.
template <int kImages>
__device__ __forceinline__ void block_find(const Keep& keep, const TokenSizes& size, int64_t image, int64_t first,
                                           BlockPositions (&positions)[kImages]) {
  static_assert(kRowsPerBlock % kImages == 0, "a warp reads the ids of one image");
  if (threadIdx.y < kImages && threadIdx.x <= kRowsPerBlock) {
    positions[threadIdx.y][threadIdx.x] = threadIdx.x < kRowsPerBlock ? kMasked : 0;
  }
  __syncthreads();
  BlockPositions& own = positions[threadIdx.y % kImages];
  image += threadIdx.y % kImages;
  if (image < size.images) {
    constexpr int kStep = kRowsPerBlock / kImages * kWarp;
    const int64_t* ids = keep.ids + image * keep.image_stride;
    for (int64_t begin = threadIdx.y / kImages * kWarp + threadIdx.x; begin < size.kept; begin += kInFlight * kStep) {
      int64_t id[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t k = begin + i * kStep;
        if (k < size.kept) {
          id[i] = ids[k * keep.token_stride];
        }
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t k = begin + i * kStep;
        if (k >= size.kept) {
          break;
        }
        if (!is_token(id[i], size)) {
          atomicExch(&own[kRowsPerBlock], 1);
          continue;
        }
        const int64_t row = id[i] - first;
        if (row >= 0 && row < kRowsPerBlock && atomicExch(&own[row], static_cast<int32_t>(k)) != kMasked) {
          atomicExch(&own[row], kWrong);  // the last of those that come here leaves it behind
        }
      }
    }
  }
  __syncthreads();
}

// The positions of all tokens, [B, N], for kernels that go through the images token by token; a warp per image. All
// tokens of an image with an id out of range, or twice, are kWrong.
[[maybe_unused]] static __global__ void __launch_bounds__(kWarp)
    positions_kernel(Keep keep, TokenSizes size, int32_t* positions) {
  constexpr unsigned kAll = 0xffffffffu;
  const int64_t image = blockIdx.x;
  const int64_t* ids = keep.ids + image * keep.image_stride;
  int32_t* own = positions + image * size.tokens;
  for (int64_t token = threadIdx.x; token < size.tokens; token += kWarp) {
    own[token] = kMasked;
  }
  __syncwarp();
  bool wrong = false;
  for (int64_t k = threadIdx.x; k < size.kept; k += kWarp) {
    const int64_t id = ids[k * keep.token_stride];
    if (is_token(id, size)) {
      wrong |= atomicExch(&own[id], static_cast<int32_t>(k)) != kMasked;
    } else {
      wrong = true;
    }
  }
  __syncwarp();
  if (__ballot_sync(kAll, wrong) == 0) {
    return;
  }
  for (int64_t token = threadIdx.x; token < size.tokens; token += kWarp) {
    own[token] = kWrong;
  }
}

// Blocks of positions_kernel.
inline unsigned image_blocks(const char* op, const TokenSizes& size) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  BIMKERN_CHECK(size.images <= kMaxBlocks, op, ": at most ", kMaxBlocks, " images fit a launch, got ", size.images);
  return static_cast<unsigned>(size.images);
}

}  // namespace bimkern
