// Stands in for the CUDA file where the library is built without nvcc.
#include "arena/cuda_driver.h"
#include "core/error.h"

namespace bimkern {

std::unique_ptr<Driver> make_cuda_driver(int) { throw Error("arena: this library was built without CUDA"); }

}  // namespace bimkern
