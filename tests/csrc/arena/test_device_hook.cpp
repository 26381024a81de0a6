// python/device_hook.cpp on a simulated device: its memory is the host's, and the caller sets torch's current stream.
// tests/test_arena_device.py builds this as a library and calls it as torch would.
#include <sys/types.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "arena/cuda_driver.h"
#include "arena/error.h"
#include "device_hook.h"

namespace {

void* current = nullptr;
int64_t left = 0;                    // bytes that there are
bool broken = false;                 // frees and records fail
std::vector<uint64_t> waits;         // waiting stream, stream waited for, and so on
std::vector<bimkern::Stream> marks;  // of the events
std::vector<bimkern::DeviceArena*> arenas;
char text[1000];

class HostDriver final : public bimkern::Driver {
 public:
  void* allocate(int64_t bytes, bimkern::Stream) override {
    if (bytes > left) {
      return nullptr;
    }
    left -= bytes;
    return std::aligned_alloc(bimkern::kDriverAlignment,
                              static_cast<size_t>(bimkern::room(bytes, bimkern::kDriverAlignment, 0)));
  }
  void free(void* address, int64_t bytes, bimkern::Stream) override {
    BIMKERN_CHECK(!broken, "arena: cudaFreeAsync failed: simulated");
    left += bytes;
    std::free(address);
  }
  Event record(bimkern::Stream stream) override {
    BIMKERN_CHECK(!broken, "arena: cudaEventRecord failed: simulated");
    marks.push_back(stream);
    return marks.size() - 1;
  }
  void wait(bimkern::Stream stream, Event event) override {
    waits.push_back(stream);
    waits.push_back(marks[event]);
  }
  void fill(void* address, unsigned char value, int64_t bytes, bimkern::Stream) override {
    std::memset(address, value, static_cast<size_t>(bytes));
  }
  bool holds(const void* address, unsigned char value, int64_t bytes, bimkern::Stream) override {
    return bimkern::HostMemory().holds(address, value, bytes);
  }
};

}  // namespace

std::unique_ptr<bimkern::Driver> bimkern::make_cuda_driver(int) { return std::make_unique<HostDriver>(); }

extern "C" {

void bimkern_arena_free(void* address, ssize_t, int device, void* stream);

int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = current;
  return 0;
}

// The test's controls of torch and of the device.
void simulated_stream(void* stream) { current = stream; }
void simulated_memory(int64_t bytes) { left = bytes; }
void simulated_broken(int on) { broken = on != 0; }
int64_t simulated_left() { return left; }
int64_t simulated_waits(uint64_t* of, int64_t most) {
  const int64_t count = static_cast<int64_t>(waits.size());
  std::copy_n(waits.begin(), std::min(count, most), of);
  waits.clear();
  return count;
}
int simulated_open(int arena, const char* scope, int debug) {
  if (arena < 0) {
    arena = static_cast<int>(arenas.size());
    arenas.push_back(new bimkern::DeviceArena(0, debug != 0));
  }
  arenas[static_cast<size_t>(arena)]->open(scope);
  return arena;
}
// -> the fault that closing ended with, -1 for none
int simulated_close(int arena, const char* scope) {
  try {
    arenas[static_cast<size_t>(arena)]->close(scope, false);
  } catch (const bimkern::ArenaError& error) {
    std::strncpy(text, error.what(), sizeof(text) - 1);
    return static_cast<int>(error.fault());
  }
  return -1;
}
const char* simulated_text() { return text; }  // of the last fault
void simulated_delete(int arena) {
  delete arenas[static_cast<size_t>(arena)];
  arenas[static_cast<size_t>(arena)] = nullptr;
}
// What torch does when an error unwinds past tensors.
int simulated_unwind(void* address, void* stream) {
  struct Tensor {
    void *address, *stream;
    ~Tensor() { bimkern_arena_free(address, 0, 0, stream); }
  };
  try {
    const Tensor tensor{address, stream};
    throw bimkern::Error("the user's");
  } catch (const bimkern::Error& error) {
    return std::strcmp(error.what(), "the user's") == 0;
  }
}
int64_t simulated_planned(int arena) { return arenas[static_cast<size_t>(arena)]->arena().statistics().planned; }
}
