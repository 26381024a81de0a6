// How the CUDA kernels find the place of a token in keep, which may be in any order. No id, whatever it is, is read or
// written through before it was compared with N, and nothing waits to tell of a wrong one: it is kWrong, of which the
// kernels make NaN.
#pragma once

#include <cmath>

#include "core/cuda.h"
#include "core/dtype.h"
#include "ops/keep.h"

namespace bimkern {

// In place of a place: an id of the image is out of range, or the token is there twice.
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

// The place of one token, found by a warp that reads all ids of the image: independent loads, which come from the cache
// for all rows but the first. All lanes get the answer. These are 8*K bytes a row of D values: with K=49 fewer than the
// row's own, but with N=4096, K=1024 and D=512 in bfloat16 8 KB for a row of 1 KB, so that the caches set the pace.
__device__ __forceinline__ int64_t warp_find(const Keep& keep, const TokenSizes& size, int64_t image, int64_t token) {
  constexpr unsigned kAll = 0xffffffffu;
  const int64_t* ids = keep.ids + image * keep.image_stride;
  int64_t place = kHidden;
  bool wrong = false;
#pragma unroll 4
  for (int64_t k = threadIdx.x; k < size.kept; k += kWarp) {
    const int64_t id = ids[k * keep.token_stride];
    wrong |= !is_token(id, size) || (id == token && place != kHidden);
    place = id == token ? k : place;
  }
  const unsigned holders = __ballot_sync(kAll, place != kHidden);
  if (__ballot_sync(kAll, wrong) != 0 || __popc(holders) > 1) {
    return kWrong;
  }
  return holders == 0 ? kHidden : __shfl_sync(kAll, place, __ffs(static_cast<int>(holders)) - 1);
}

// The places of all tokens, [B, N], for kernels that go through the images token by token; a warp per image. All tokens
// of an image with an id out of range, or twice, are kWrong.
[[maybe_unused]] static __global__ void __launch_bounds__(kWarp)
    places_kernel(Keep keep, TokenSizes size, int32_t* places) {
  constexpr unsigned kAll = 0xffffffffu;
  const int64_t image = blockIdx.x;
  const int64_t* ids = keep.ids + image * keep.image_stride;
  int32_t* own = places + image * size.tokens;
  for (int64_t token = threadIdx.x; token < size.tokens; token += kWarp) {
    own[token] = kHidden;
  }
  __syncwarp();
  bool wrong = false;
  for (int64_t k = threadIdx.x; k < size.kept; k += kWarp) {
    const int64_t id = ids[k * keep.token_stride];
    if (is_token(id, size)) {
      wrong |= atomicExch(&own[id], static_cast<int32_t>(k)) != kHidden;
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

// Blocks of places_kernel.
inline unsigned image_blocks(const char* op, const TokenSizes& size) {
  constexpr int64_t kMaxBlocks = 0x7fffffff;
  BIMKERN_CHECK(size.images <= kMaxBlocks, op, ": at most ", kMaxBlocks, " images fit a launch, got ", size.images);
  return static_cast<unsigned>(size.images);
}

}  // namespace bimkern
