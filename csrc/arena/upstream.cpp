// Memory of the host. Contract: upstream.h.
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

}  // namespace bimkern
