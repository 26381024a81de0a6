// A function with a stack of its own, which runs until it pauses: what a CUDA thread is here. The sanitizers know it.
#pragma once

#include "context.h"

namespace host_cuda {

class Fiber {
 public:
  // The next resume calls entry from its start; entry must end by pausing for good.
  void restart(void (*entry)());

  // Called by the host: runs the fiber until it pauses.
  void resume();

  // Called first by entry.
  void started();

  // Called by the fiber: returns to resume, and itself at the next resume. for_good: never.
  void pause(bool for_good = false);

  // Whether address lies on the stack.
  bool holds(const void* address) const;

 private:
  Context context_{};
  char* stack_ = nullptr;       // above a guard page
  void* fake_stack_ = nullptr;  // of AddressSanitizer
  void* thread_ = nullptr;      // of ThreadSanitizer
};

// For ThreadSanitizer, which takes every fiber for a thread: what comes before a release of sync happens before what
// follows an acquire of it. Switching alone orders nothing.
void release(void* sync);
void acquire(void* sync);

}  // namespace host_cuda
