// Contract: stream_memory.h.
#include "arena/stream_memory.h"

#include <atomic>
#include <cstdio>

namespace bimkern {
namespace {

constexpr int64_t kSlack = kDeviceAlignment - kDriverAlignment;

}  // namespace

void report_once(const std::exception& error) noexcept {
  static std::atomic<bool> reported{false};
  if (!reported.exchange(true)) {
    std::fprintf(stderr, "bimkern: memory of a GPU was not freed: %s\n", error.what());
  }
}

void CountedPool::free(void* address, int64_t bytes, Stream stream) noexcept {
  live_bytes_ -= bytes;
  try {
    driver_.free(address, bytes, stream);
  } catch (const std::exception& error) {
    report_once(error);
  }
}

void* StreamMemory::allocate(int64_t bytes) {
  void* began = pool_.allocate(bytes + kSlack, stream_);
  if (began == nullptr) {
    return nullptr;
  }
  const uintptr_t late = (kDeviceAlignment - reinterpret_cast<uintptr_t>(began) % kDeviceAlignment) % kDeviceAlignment;
  void* address = static_cast<char*>(began) + late;
  began_.emplace(address, began);
  return address;
}

void StreamMemory::deallocate(void* address, int64_t bytes) {
  const auto found = began_.find(address);
  pool_.free(found->second, bytes + kSlack, stream_);
  began_.erase(found);
}

void StreamMemory::fill(void* address, unsigned char value, int64_t bytes) {
  pool_.driver().fill(address, value, bytes, stream_);
}

bool StreamMemory::holds(const void* address, unsigned char value, int64_t bytes) const {
  return pool_.driver().holds(address, value, bytes, stream_);
}

}  // namespace bimkern
