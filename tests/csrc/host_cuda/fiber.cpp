// Built without ThreadSanitizer even where the kernels have it: this file says what the threads are.
#include "fiber.h"

#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(HOST_CUDA_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

#if HOST_CUDA_X86_SWITCH
// Saves the preserved registers on this stack, notes where it ends, and continues on the other.
__asm__(R"(
.text
.type host_cuda_switch, @function
host_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size host_cuda_switch, .-host_cuda_switch
)");
#endif

namespace host_cuda {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kGuardBytes = 64 * 1024;  // the largest page of any machine

// The stack that resumes fibers: one launch runs at a time.
struct Host {
  Context context;
  void* fake_stack;
  const void* bottom;
  size_t bytes;
  void* thread;
} host;

char* make_stack() {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
    throw std::bad_alloc();
  }
  return static_cast<char*>(memory) + kGuardBytes;
}

}  // namespace

void Fiber::restart(void (*entry)()) {
  if (stack_ == nullptr) {
    stack_ = make_stack();
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);  // of the frames that were never left
#endif
#if defined(HOST_CUDA_TSAN)
  if (thread_ == nullptr) {
    thread_ = __tsan_create_fiber(0);
  }
#endif
  make_context(context_, stack_, kStackBytes, entry);
  fake_stack_ = nullptr;
}

void Fiber::resume() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&host.fake_stack, stack_, kStackBytes);
#endif
#if defined(HOST_CUDA_TSAN)
  host.thread = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(thread_, __tsan_switch_to_fiber_no_sync);
#endif
  switch_context(host.context, context_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(host.fake_stack, nullptr, nullptr);
#endif
}

void Fiber::started() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &host.bottom, &host.bytes);
#endif
}

void Fiber::pause([[maybe_unused]] bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, host.bottom, host.bytes);
#endif
#if defined(HOST_CUDA_TSAN)
  __tsan_switch_to_fiber(host.thread, __tsan_switch_to_fiber_no_sync);
#endif
  switch_context(context_, host.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &host.bottom, &host.bytes);
#endif
}

bool Fiber::holds(const void* address) const {
  const auto* at = static_cast<const char*>(address);
  return at >= stack_ && at < stack_ + kStackBytes;
}

void release([[maybe_unused]] void* sync) {
#if defined(HOST_CUDA_TSAN)
  __tsan_release(sync);
#endif
}

void acquire([[maybe_unused]] void* sync) {
#if defined(HOST_CUDA_TSAN)
  __tsan_acquire(sync);
#endif
}

}  // namespace host_cuda
