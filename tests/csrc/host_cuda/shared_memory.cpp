// The shared memory of a block. It starts as NaN in every type, and under AddressSanitizer its parts lie between red
// zones.
#include <algorithm>

#include "machine.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(at, bytes) ((void)(at), (void)(bytes))
#define __asan_unpoison_memory_region(at, bytes) ((void)(at), (void)(bytes))
#endif

namespace host_cuda {
namespace {

constexpr size_t kRedZone = 32;
constexpr size_t kAlignment = 128;
constexpr size_t kMostVariables = 64;

struct Variable {
  const void* tag;
  void* at;
};

struct SharedMemory {
  std::vector<char> bytes;
  size_t dynamic_bytes = 0;
  void* dynamic = nullptr;
  char* free = nullptr;  // what lies behind is not given out yet
  size_t given = 0;      // bytes of variables
  std::vector<Variable> variables;
} memory;

void* take(size_t bytes) {
  char* const at = memory.free;
  memory.free += (bytes + kRedZone + kAlignment - 1) / kAlignment * kAlignment;
  __asan_unpoison_memory_region(at, bytes);
  // Not by memset: ThreadSanitizer intercepts it, and would take this for an access of the kernel.
  for (volatile char* byte = at; byte < at + bytes; ++byte) {
    *byte = static_cast<char>(0xff);
  }
  return at;
}

}  // namespace

void make_shared_memory(size_t dynamic_bytes) {
  memory.dynamic_bytes = dynamic_bytes;
  const size_t padding = (kMostVariables + 2) * (kRedZone + kAlignment);
  std::vector<char>(dynamic_bytes + kDefaultShared + padding).swap(memory.bytes);
}

void clear_shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(memory.bytes.data());
  memory.variables.clear();
  memory.given = 0;
  memory.free = memory.bytes.data() + (kAlignment - address % kAlignment) % kAlignment;
  __asan_poison_memory_region(memory.bytes.data(), memory.bytes.size());
  memory.dynamic = take(memory.dynamic_bytes);
}

void open_shared_memory() { __asan_unpoison_memory_region(memory.bytes.data(), memory.bytes.size()); }

void* shared_array() { return memory.dynamic; }

void* shared_variable(const void* tag, size_t bytes) {
  const auto known = std::find_if(memory.variables.begin(), memory.variables.end(),
                                  [=](const Variable& variable) { return variable.tag == tag; });
  if (known != memory.variables.end()) {
    return known->at;
  }
  if (memory.given + bytes > kDefaultShared || memory.variables.size() == kMostVariables) {
    throw Fault{bimkern::message("more than ", kDefaultShared, " bytes, or ", kMostVariables, ", of shared variables")};
  }
  memory.given += bytes;
  memory.variables.push_back({tag, take(bytes)});
  return memory.variables.back().at;
}

bool is_shared(const void* address) {
  const auto* at = static_cast<const char*>(address);
  return at >= memory.bytes.data() && at < memory.bytes.data() + memory.bytes.size();
}

}  // namespace host_cuda
