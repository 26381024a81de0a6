// A stack to run a function on, and the switch from one stack to another.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(HOST_CUDA_UCONTEXT)
#define HOST_CUDA_X86_SWITCH 1
#else
#define HOST_CUDA_X86_SWITCH 0
#include <ucontext.h>
#endif

namespace host_cuda {

#if HOST_CUDA_X86_SWITCH

// Where a suspended stack ends; the registers that a call must preserve lie there. Twenty times as fast as swapcontext,
// which asks the kernel for the signal mask.
using Context = void*;

extern "C" void host_cuda_switch(Context* from, Context to);

inline void switch_context(Context& from, Context& to) { host_cuda_switch(&from, to); }

// The first switch to the context calls entry, which must not return.
inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  constexpr int kPreserved = 6;
  auto** top = reinterpret_cast<void**>(stack + bytes);
  *--top = nullptr;  // where entry would return to: its stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kPreserved; ++i) {
    *--top = nullptr;
  }
  context = top;
}

#else

using Context = ucontext_t;

inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

inline void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

#endif

}  // namespace host_cuda
