// What the library was built with and what it uses here, for bimkern/ops/native_library.py.
#include "core/error.h"
#include "core/simd.h"

#define BIMKERN_EXPORT extern "C" __attribute__((visibility("default")))

// Compute architectures of the CUDA kernels, parted by spaces; empty without CUDA.
BIMKERN_EXPORT const char* bimkern_cuda_archs() { return BIMKERN_CUDA_ARCHS; }

// Instruction set of the CPU kernels; null where BIMKERN_CPU asks for what is not there, and every call of one raises.
BIMKERN_EXPORT const char* bimkern_simd() {
  try {
    return bimkern::name_of(bimkern::simd_in_use());
  } catch (const bimkern::Error&) {
    return nullptr;
  }
}
