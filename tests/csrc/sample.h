// Random inputs for the tests of ops on tokens, and the ways to run a kernel: threads and instruction sets.
#pragma once

#include <algorithm>
#include <random>
#include <thread>
#include <vector>

#include "core/parallel.h"
#include "core/simd.h"
#include "ops/keep.h"

namespace bimkern {

// Whether the CPU's entries are served by the CUDA kernels: tests/csrc/host_cuda.
#ifdef BIMKERN_TESTS_CUDA
constexpr bool kTestsCuda = true;
#else
constexpr bool kTestsCuda = false;
#endif

inline std::mt19937& random_bits() {
  static std::mt19937 bits(std::random_device{}());
  return bits;
}

inline std::vector<float> normals(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) {
    value = normal(random_bits());
  }
  return values;
}

// keep of every image, [B, K]: ascending and uniform, by selection sampling.
inline std::vector<int64_t> random_ids(const TokenSizes& size) {
  std::vector<int64_t> ids;
  for (int64_t image = 0; image < size.images; ++image) {
    int64_t open = size.kept;
    for (int64_t id = 0; id < size.tokens; ++id) {
      if (static_cast<int64_t>(random_bits()() % (size.tokens - id)) < open) {
        ids.push_back(id);
        --open;
      }
    }
  }
  return ids;
}

// The same in any order, but for every other image, which ascends.
inline std::vector<int64_t> unordered_ids(const TokenSizes& size) {
  std::vector<int64_t> ids = random_ids(size);
  for (int64_t image = 0; image < size.images; image += 2) {
    const auto own = ids.begin() + image * size.kept;
    std::shuffle(own, own + size.kept, random_bits());
  }
  return ids;
}

// The position of id in an image's ids, -1 if it is not there.
inline int64_t position_of(const int64_t* ids, int64_t count, int64_t id) {
  const int64_t* found = std::find(ids, ids + count, id);
  return found == ids + count ? -1 : found - ids;
}

inline Parallel several_threads() {
  return Parallel{[](int64_t count, int64_t, Parallel::Body body, void* context) {
    constexpr int64_t kThreads = 3;
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([=] { body(count * i / kThreads, count * (i + 1) / kThreads, context); });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  }};
}

// f(parallel, simd), on one thread and on several, with every instruction set of this machine. CUDA knows one way.
template <typename F>
void run_every_way(const F& f) {
  if (kTestsCuda) {
    return f(serial(), Simd::kBaseline);
  }
  for (const Simd simd : kSimds) {
    if (simd <= widest_simd()) {
      f(serial(), simd);
      f(several_threads(), simd);
    }
  }
}

inline std::vector<TokenSizes> token_cases() {
  // A CUDA kernel splits its work earlier, and takes longer here.
  const TokenSizes wide = kTestsCuda ? TokenSizes{2, 1, 5, 2, 1100} : TokenSizes{2, 1, 5, 2, 9000};
  const TokenSizes many_images = kTestsCuda ? TokenSizes{64, 1, 9, 3, 40} : TokenSizes{64, 1, 196, 49, 96};
  return {{3, 1, 49, 12, 32}, {3, 0, 49, 12, 32}, {3, 3, 49, 12, 32}, {3, 1, 49, 0, 32},
          {3, 1, 49, 49, 32}, {1, 0, 1, 1, 1},    {3, 1, 49, 12, 37}, {0, 1, 49, 12, 32},
          {3, 1, 0, 0, 32},   {3, 1, 49, 12, 0},  {2, 1, 50, 9, 700}, wide,
          {3, 2, 9, 4, 150},  {5, 1, 0, 0, 32},   {5, 1, 9, 4, 40},   many_images};
}

}  // namespace bimkern
