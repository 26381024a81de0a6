// What the machine has, and what the environment asks for.
#include "core/simd.h"

#include <cstdlib>
#include <cstring>

#include "core/error.h"

namespace bimkern {

Simd widest_simd() {
#if BIMKERN_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return wide ? Simd::kAvx512 : Simd::kAvx2;
  }
#endif
  return Simd::kBaseline;
}

Simd choose_simd(const char* name, Simd widest) {
  if (name == nullptr) {
    return widest;
  }
  for (const Simd simd : kSimds) {
    if (std::strcmp(name, name_of(simd)) == 0) {
      BIMKERN_CHECK(simd <= widest, "BIMKERN_CPU=", name, ", but this machine has ", name_of(widest), " at most");
      return simd;
    }
  }
  throw Error(message("BIMKERN_CPU must be one of baseline, avx2, avx512, got '", name, "'"));
}

Simd simd_in_use() {
  static const Simd simd = choose_simd(std::getenv("BIMKERN_CPU"), widest_simd());
  return simd;
}

}  // namespace bimkern
