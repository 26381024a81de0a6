// One source, three instruction sets: vectorized(simd, f) runs f in a copy that the compiler made for that set.
//
// Only what is inlined into f gains from it, so f and what it calls per element are BIMKERN_INLINE; a call out of f
// runs baseline code, which is slower and just as right. Results are equal bit for bit on every set (what a NaN carries
// aside): the build never contracts a product and a sum into one rounding.
#pragma once

#include "core/common.h"

#define BIMKERN_INLINE __attribute__((always_inline))

#if defined(__x86_64__) && !defined(BIMKERN_BASELINE_ONLY)
#define BIMKERN_X86 1
#define BIMKERN_AVX2 __attribute__((target("avx2,fma,f16c")))
#define BIMKERN_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#else
#define BIMKERN_X86 0
#endif

namespace bimkern {

enum class Simd : int32_t { kBaseline, kAvx2, kAvx512 };

constexpr Simd kSimds[] = {Simd::kBaseline, Simd::kAvx2, Simd::kAvx512};
constexpr const char* kSimdNames[] = {"baseline", "avx2", "avx512"};

inline const char* name_of(Simd simd) { return kSimdNames[static_cast<int>(simd)]; }

// The widest set that this machine has.
Simd widest_simd();

// The set that a name asks for; null asks for the widest. Throws Error where the name is unknown or beyond the widest.
Simd choose_simd(const char* name, Simd widest);

// The set in use: the environment's BIMKERN_CPU at the first call, else the widest. Throws Error like choose_simd.
Simd simd_in_use();

// Tells code inside of f which set it is compiled for.
template <Simd kSimd>
struct SimdTag {};

#if BIMKERN_X86
template <typename F>
BIMKERN_AVX2 void run_avx2(const F& f) {
  f(SimdTag<Simd::kAvx2>{});
}

template <typename F>
BIMKERN_AVX512 void run_avx512(const F& f) {
  f(SimdTag<Simd::kAvx512>{});
}
#endif

// Calls f(SimdTag): vectorized(simd, [&](auto set) BIMKERN_INLINE { ... }). The machine must have the set.
template <typename F>
void vectorized(Simd simd, const F& f) {
  switch (simd) {
#if BIMKERN_X86
    case Simd::kAvx512:
      return run_avx512(f);
    case Simd::kAvx2:
      return run_avx2(f);
#endif
    default:
      return f(SimdTag<Simd::kBaseline>{});
  }
}

}  // namespace bimkern
