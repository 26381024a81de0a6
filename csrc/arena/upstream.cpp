// Memory of the host, and addresses for tests. Contract: upstream.h.
#include "arena/upstream.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace bimkern {

void* HostMemory::allocate(int64_t bytes) {
  return ::operator new(static_cast<size_t>(bytes), std::align_val_t{kHostAlignment}, std::nothrow);
}

void HostMemory::deallocate(void* address, int64_t) { ::operator delete(address, std::align_val_t{kHostAlignment}); }

void HostMemory::fill(void* address, unsigned char value, int64_t bytes) {
  std::memset(address, value, static_cast<size_t>(bytes));
}

bool HostMemory::holds(const void* address, unsigned char value, int64_t bytes) const {
  const unsigned char* first = static_cast<const unsigned char*>(address);
  return std::all_of(first, first + bytes, [=](unsigned char byte) { return byte == value; });
}

void* FakeMemory::allocate(int64_t bytes) {
  if (++calls_ == failing_call_) {
    return nullptr;
  }
  void* address = reinterpret_cast<void*>(next_);
  next_ += (ceil_div(bytes, alignment_) + 1) * alignment_;  // neighbours never touch
  live_.emplace(address, bytes);
  live_bytes_ += bytes;
  return address;
}

void FakeMemory::deallocate(void* address, int64_t bytes) {
  const auto found = live_.find(address);
  if (found == live_.end() || found->second != bytes) {
    ++mistakes_;
    return;
  }
  live_bytes_ -= bytes;
  live_.erase(found);
}

}  // namespace bimkern
