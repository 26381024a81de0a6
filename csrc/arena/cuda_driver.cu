// Contract: cuda_driver.h. Calls of the runtime alone, no kernels.
#include <algorithm>
#include <vector>

#include "arena/cuda_driver.h"
#include "core/cuda.h"

namespace bimkern {
namespace {

// At the end of a process tensors are freed when there is nothing any more that they could be given back to.
void check(const char* call, cudaError_t status) {
  BIMKERN_CHECK(status == cudaSuccess || status == cudaErrorCudartUnloading, "arena: ", call,
                " failed: ", cudaGetErrorString(status));
}

cudaStream_t handle(Stream stream) { return reinterpret_cast<cudaStream_t>(stream); }

// The legacy default stream is that of the current device, and so is a new event.
class Current {
 public:
  explicit Current(int device) {
    check("cudaGetDevice", cudaGetDevice(&before_));
    changed_ = before_ != device;
    if (changed_) {
      check("cudaSetDevice", cudaSetDevice(device));
    }
  }
  ~Current() {
    if (changed_) {
      cudaSetDevice(before_);
    }
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

class CudaDriver final : public Driver {
 public:
  explicit CudaDriver(int device) : device_(device) {
    int pools = 0;
    check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device));
    BIMKERN_CHECK(pools != 0, "arena: GPU ", device, " has no stream-ordered pool");
    check("cudaDeviceGetDefaultMemPool", cudaDeviceGetDefaultMemPool(&pool_, device));
    uint64_t everything =
        UINT64_MAX;  // else every synchronization returns memory, and the next step allocates it again
    check("cudaMemPoolSetAttribute", cudaMemPoolSetAttribute(pool_, cudaMemPoolAttrReleaseThreshold, &everything));
  }

  void* allocate(int64_t bytes, Stream stream) override {
    const Current current(device_);
    void* address = try_to_allocate(bytes, stream);
    if (address == nullptr) {  // what the pool keeps may lie in pieces that are too small, or be still in use
      check("cudaDeviceSynchronize", cudaDeviceSynchronize());
      check("cudaMemPoolTrimTo", cudaMemPoolTrimTo(pool_, 0));
      address = try_to_allocate(bytes, stream);
    }
    return address;
  }

  void free(void* address, int64_t, Stream stream) override {
    const Current current(device_);
    check("cudaFreeAsync", cudaFreeAsync(address, handle(stream)));
  }

  Event record(Stream stream) override {
    const Current current(device_);
    cudaEvent_t event = nullptr;
    check("cudaEventCreateWithFlags", cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    check("cudaEventRecord", cudaEventRecord(event, handle(stream)));
    return reinterpret_cast<Event>(event);
  }

  void wait(Stream stream, Event event) override {
    const Current current(device_);
    const cudaEvent_t waited = reinterpret_cast<cudaEvent_t>(event);
    check("cudaStreamWaitEvent", cudaStreamWaitEvent(handle(stream), waited, 0));
    check("cudaEventDestroy", cudaEventDestroy(waited));  // its resources stay until it has happened
  }

  void fill(void* address, unsigned char value, int64_t bytes, Stream stream) override {
    const Current current(device_);
    check("cudaMemsetAsync", cudaMemsetAsync(address, value, static_cast<size_t>(bytes), handle(stream)));
  }

  bool holds(const void* address, unsigned char value, int64_t bytes, Stream stream) override {
    const Current current(device_);
    std::vector<unsigned char> copy(static_cast<size_t>(bytes));
    check("cudaMemcpyAsync",
          cudaMemcpyAsync(copy.data(), address, copy.size(), cudaMemcpyDeviceToHost, handle(stream)));
    check("cudaStreamSynchronize", cudaStreamSynchronize(handle(stream)));
    return std::all_of(copy.begin(), copy.end(), [=](unsigned char byte) { return byte == value; });
  }

 private:
  static void* try_to_allocate(int64_t bytes, Stream stream) {
    void* address = nullptr;
    const cudaError_t status = cudaMallocAsync(&address, static_cast<size_t>(bytes), handle(stream));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // clears it: the next launch would report it
      return nullptr;
    }
    check("cudaMallocAsync", status);
    return address;
  }

  int device_;
  cudaMemPool_t pool_ = nullptr;
};

}  // namespace

std::unique_ptr<Driver> make_cuda_driver(int device) { return std::make_unique<CudaDriver>(device); }

}  // namespace bimkern
