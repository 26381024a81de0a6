// CUDA kernel of random_keep.h, bound by arithmetic; it reads the sample ids and the parent and writes the result once.
//
// A block per image, a thread per four candidates: their words stay in registers, and where there are more candidates
// than threads the words are drawn again, which is cheaper than a memory for them that would bound N. The K-th smallest
// word is found digit by digit: a histogram of the words that agree with the digits found so far, and a scan of it. One
// pass in the order of positions then writes the words below it, and of the equal ones the first. Counts alone are
// summed by atomics, so the result does not depend on timing.
#include <algorithm>

#include "core/cuda.h"
#include "ops/random_keep.h"

namespace bimkern {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kDigitsPerLane = kDigits / kWarp;
constexpr int64_t kMaxBlocks = 0x7fffffff;

// Where the count of a digit lies: a gap behind every 32, so that lanes that go through their digits meet different
// banks.
__device__ __forceinline__ uint32_t slot(uint32_t digit) { return digit + digit / kWarp; }

// What is known of the word searched for: its upper digits, and its rank, from 1, among the words that begin with them.
struct Search {
  uint32_t digits;
  uint32_t rank;
};

// The words of the candidates 4 * group to 4 * group + 3; what lies beyond P is arbitrary.
__device__ __forceinline__ PhiloxCounter group_words(const RandomKeep& args, const int64_t* parent, int64_t sample_id,
                                                     int64_t group) {
  if (parent == nullptr) {
    return philox4x32_10(token_counter(sample_id, group), args.key);
  }
  PhiloxCounter words{};
#pragma unroll
  for (int j = 0; j < kWordsPerBlock; ++j) {
    const int64_t position = group * kWordsPerBlock + j;
    if (position < args.candidates) {
      words.word[j] = token_word(sample_id, parent[position * args.parent.token_stride], args.key);
    }
  }
  return words;
}

// One digit more, by one warp: the digit in whose count the rank falls. The same on all lanes.
__device__ __forceinline__ Search next_digit(const uint32_t* counts, Search search) {
  const unsigned lane = threadIdx.x % kWarp;
  uint32_t through = 0;  // counts of this lane's digits and all before
#pragma unroll
  for (int i = 0; i < kDigitsPerLane; ++i) {
    through += counts[slot(lane * kDigitsPerLane + i)];
  }
  uint32_t before = through;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const uint32_t other = __shfl_up_sync(0xffffffffu, through, step);
    through += lane >= step ? other : 0;
  }
  before = through - before;
  const unsigned owner = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, search.rank <= through))) - 1;
  uint32_t digit = lane * kDigitsPerLane;
  uint32_t rank = search.rank - before;
  if (lane == owner) {
    for (; rank > counts[slot(digit)]; ++digit) {
      rank -= counts[slot(digit)];
    }
  }
  digit = __shfl_sync(0xffffffffu, digit, owner);
  return Search{search.digits << kDigitBits | digit, __shfl_sync(0xffffffffu, rank, owner)};
}

// The sum of value over the threads before this one; total gets that over all. Called by the whole block.
__device__ __forceinline__ uint64_t sum_before(uint64_t value, uint64_t* warp_sums, uint64_t& total) {
  const unsigned lane = threadIdx.x % kWarp;
  uint64_t through = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const uint64_t other = __shfl_up_sync(0xffffffffu, through, step);
    through += lane >= step ? other : 0;
  }
  __syncthreads();  // no thread still reads the sums of the previous call
  if (lane == kWarp - 1) {
    warp_sums[threadIdx.x / kWarp] = through;
  }
  __syncthreads();
  uint64_t before = through - value;
  total = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) {
    before += warp < threadIdx.x / kWarp ? warp_sums[warp] : 0;
    total += warp_sums[warp];
  }
  return before;
}

__global__ void __launch_bounds__(kMaxThreads) random_keep_kernel(RandomKeep args) {
  __shared__ uint32_t counts[kDigits + kDigits / kWarp];
  __shared__ Search shared_search;
  __shared__ uint64_t warp_sums[kMaxWarps];
  const int64_t image = blockIdx.x;
  const int64_t sample_id = args.sample_ids[image * args.sample_stride];
  const int64_t* parent = args.parent.ids == nullptr ? nullptr : args.parent.ids + image * args.parent.image_stride;
  const int64_t groups = ceil_div<int64_t>(args.candidates, kWordsPerBlock);
  const PhiloxCounter own = group_words(args, parent, sample_id, threadIdx.x);
  const auto words_of = [&](int64_t group) {
    return group == threadIdx.x ? own : group_words(args, parent, sample_id, group);
  };

  Search search{0, static_cast<uint32_t>(args.kept)};
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = threadIdx.x; i < kDigits; i += blockDim.x) {
      counts[slot(i)] = 0;
    }
    __syncthreads();
    for (int64_t group = threadIdx.x; group < groups; group += blockDim.x) {
      const PhiloxCounter words = words_of(group);
#pragma unroll
      for (int j = 0; j < kWordsPerBlock; ++j) {
        const uint32_t upper = words.word[j] >> shift;
        if (group * kWordsPerBlock + j < args.candidates && upper >> kDigitBits == search.digits) {
          atomicAdd(&counts[slot(upper % kDigits)], 1u);
        }
      }
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {
      const Search found = next_digit(counts, search);
      if (threadIdx.x == 0) {
        shared_search = found;
      }
    }
    __syncthreads();
    search = shared_search;
  }

  // Both counts of a thread in one number: words below the one found, and words equal to it.
  constexpr uint64_t kBelow = uint64_t{1} << 32;
  uint64_t seen = 0;
  for (int64_t first = 0; first < groups; first += blockDim.x) {
    const int64_t group = first + threadIdx.x;
    const PhiloxCounter words = words_of(group);
    uint64_t weights[kWordsPerBlock];
    uint64_t sum = 0;
#pragma unroll
    for (int j = 0; j < kWordsPerBlock; ++j) {
      const uint32_t word = words.word[j];
      const bool present = group * kWordsPerBlock + j < args.candidates;
      weights[j] = !present || word > search.digits ? 0 : (word < search.digits ? kBelow : 1);
      sum += weights[j];
    }
    uint64_t total;
    uint64_t before = seen + sum_before(sum, warp_sums, total);
    seen += total;
#pragma unroll
    for (int j = 0; j < kWordsPerBlock; ++j) {
      const auto equal = static_cast<uint32_t>(before);
      if (weights[j] == kBelow || (weights[j] == 1 && equal < search.rank)) {
        const int64_t position = group * kWordsPerBlock + j;
        const int64_t to = image * args.kept + static_cast<int64_t>(before >> 32) + min(equal, search.rank);
        if (parent == nullptr) {
          args.keep[to] = position;
        } else {
          args.keep[to] = parent[position * args.parent.token_stride];
          args.within[to] = position;
        }
      }
      before += weights[j];
    }
  }
}

}  // namespace

void random_keep_cuda(const RandomKeep& args, void* stream) {
  if (args.images == 0 || args.kept == 0) {
    return;
  }
  BIMKERN_CHECK(args.images <= kMaxBlocks, "random_keep: at most ", kMaxBlocks, " images fit a launch, got ",
                args.images);
  const int64_t groups = ceil_div<int64_t>(args.candidates, kWordsPerBlock);
  const auto threads = static_cast<unsigned>(std::min<int64_t>(ceil_div<int64_t>(groups, kWarp) * kWarp, kMaxThreads));
  random_keep_kernel<<<static_cast<unsigned>(args.images), threads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  check_launch("random_keep");
}

}  // namespace bimkern
