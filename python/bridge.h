// What every binding needs to hand a torch tensor to the core. Only files in this folder include torch, and only its
// stable ABI, so that one library serves every torch of the supported range.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

#include "core/dtype.h"
#include "core/parallel.h"

// Lives in libtorch_cuda.so; weak, so that the library also loads beside a torch without CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

// Why the last call into torch failed on this thread; since torch 2.13, so weak as well.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace bimkern {

using torch::stable::Tensor;

// The stable ABI says that an allocation failed, and not why: this adds torch's own words, where torch tells them.
template <typename Allocate>
Tensor with_reason(const Allocate& allocate) {
  try {
    return allocate();
  } catch (const std::exception& error) {
    if (torch_exception_get_what_without_backtrace == nullptr) throw;
    throw std::runtime_error(std::string(torch_exception_get_what_without_backtrace()) + "\n" + error.what());
  }
}

template <typename... Args>
Tensor make_empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape, Args... args) {
  return with_reason([&] { return torch::stable::new_empty(like, shape, args...); });
}

inline Tensor make_contiguous(const Tensor& tensor) {
  return with_reason([&] { return torch::stable::contiguous(tensor); });
}

inline DType dtype_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return DType::kFloat32;
    case torch::headeronly::ScalarType::Half:
      return DType::kFloat16;
    case torch::headeronly::ScalarType::BFloat16:
      return DType::kBFloat16;
    case torch::headeronly::ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float32, float16, bfloat16 or float64");
  }
}

// torch's own thread pool.
inline Parallel torch_pool() {
  return Parallel{[](int64_t count, int64_t grain, Parallel::Body body, void* context) {
    torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(begin, end, context); });
  }};
}

// Makes the tensor's device current for a scope, and knows its stream.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "bimkern: this torch was built without CUDA");
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

// The kernels take any strides but for the last dimension.
inline Tensor with_contiguous_rows(const Tensor& tensor) {
  const bool has_rows = tensor.size(-1) <= 1 || tensor.stride(-1) == 1;
  return has_rows ? tensor : make_contiguous(tensor);
}

}  // namespace bimkern
