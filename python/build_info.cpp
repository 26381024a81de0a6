// What the library was built with, for bimkern/ops/_native.py.

// Compute architectures of the CUDA kernels, parted by spaces; empty without CUDA.
extern "C" __attribute__((visibility("default"))) const char* bimkern_cuda_archs() { return BIMKERN_CUDA_ARCHS; }
