// The driver of a GPU: cudaMallocAsync and cudaFreeAsync on its default pool, which keeps what it once got.
#pragma once

#include <memory>

#include "arena/driver.h"

namespace bimkern {

// Throws Error: this library was built without CUDA, there is no such GPU, or it has no stream-ordered pool.
std::unique_ptr<Driver> make_cuda_driver(int device);

}  // namespace bimkern
