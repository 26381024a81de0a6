// Contract: device_hook.h.
#include "device_hook.h"

#include <c10/util/Exception.h>
#include <sys/types.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "arena/cuda_driver.h"
#include "arena/error.h"

// Lives in libtorch_cuda.so; weak, so that the module also loads beside a torch without CUDA.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace bimkern {
namespace {

struct Owned {
  explicit Owned(int index) : driver(make_cuda_driver(index)), memory(*driver) {}
  std::unique_ptr<Driver> driver;
  Device memory;
};

constexpr int kMostDevices = 128;  // more than torch has

// Never deleted: tensors are freed until the process is gone.
std::atomic<Owned*> devices[kMostDevices];
std::mutex making;
std::atomic<int> num_debugged{0};

Stream current_stream(int device) {
  void* stream = nullptr;
  BIMKERN_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "arena: this torch was built without CUDA");
  BIMKERN_CHECK(aoti_torch_get_current_cuda_stream(device, &stream) == 0, "arena: torch has no stream on GPU ", device);
  return reinterpret_cast<Stream>(stream);
}

}  // namespace

Device& device_memory(int index) {
  BIMKERN_CHECK(0 <= index && index < kMostDevices, "arena: GPU must be in [0, ", kMostDevices, "), got ", index);
  Owned* owned = devices[index].load(std::memory_order_acquire);
  if (owned == nullptr) {
    const std::lock_guard<std::mutex> lock(making);
    owned = devices[index].load(std::memory_order_relaxed);
    if (owned == nullptr) {
      owned = new Owned(index);
      devices[index].store(owned, std::memory_order_release);
    }
  }
  return owned->memory;
}

DeviceArena::DeviceArena(int device, bool debug)
    : index_(device), debug_(debug), memory_(device_memory(device)), arena_(memory_.make_arena(debug)) {
  num_debugged += debug_;
}

DeviceArena::~DeviceArena() {
  num_debugged -= debug_;
  memory_.close_arena(arena_);
}

void DeviceArena::open(const std::string& scope) {
  const Stream stream = current_stream(index_);
  memory_.open(arena_, scope, stream);
  stream_ = stream;
}

void DeviceArena::close(const std::string& scope, bool aborted) { memory_.close(arena_, scope, stream_, aborted); }

}  // namespace bimkern

#define BIMKERN_EXPORT extern "C" __attribute__((visibility("default")))

BIMKERN_EXPORT void* bimkern_arena_alloc(ssize_t size, int device, void* stream) {
  try {
    return bimkern::device_memory(device).allocate(size, reinterpret_cast<bimkern::Stream>(stream));
  } catch (const bimkern::ArenaError& error) {
    TORCH_CHECK_WITH(OutOfMemoryError, error.fault() != bimkern::Fault::kNoMemory, "CUDA out of memory on GPU ", device,
                     ": ", error.what());
    throw;
  }
}

// torch passes the stream of the allocation; debug mode compares the one on which it is freed.
// It frees in destructors, also while an error unwinds: nothing may be thrown.
BIMKERN_EXPORT void bimkern_arena_free(void* address, ssize_t, int device, void* stream) {
  try {
    const bimkern::Stream on =
        bimkern::num_debugged > 0 ? bimkern::current_stream(device) : reinterpret_cast<bimkern::Stream>(stream);
    bimkern::device_memory(device).free(address, on);
  } catch (const bimkern::ArenaError& error) {
    bimkern::device_memory(device).keep(error);
  } catch (const std::exception& error) {
    bimkern::report_once(error);
  }
}

// An address of no device here is memory of another library, wrapped as a tensor; torch's allocator ignores it, too.
BIMKERN_EXPORT void bimkern_arena_record_stream(void* address, void* stream) {
  for (const auto& device : bimkern::devices) {
    bimkern::Owned* owned = device.load(std::memory_order_acquire);
    if (owned != nullptr && owned->memory.record(address, reinterpret_cast<bimkern::Stream>(stream))) {
      return;
    }
  }
}
