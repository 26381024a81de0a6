// The allocations and frees of a trace, run again through torch's allocator interface: what the bench times.
#pragma once

#include <c10/core/Allocator.h>

#include "arena/trace.h"
#include "host_hook.h"

namespace bimkern {

class Rerun {
 public:
  explicit Rerun(const Trace& trace);
  // One step: inside the scopes of `arena`, or without scopes and so on torch's own allocator.
  void step(HostArena* arena);

 private:
  enum class Kind { kOpen, kClose, kAllocate, kFree };
  struct Event {
    int64_t tick;
    Kind kind;
    int32_t index;  // of the scope, or of the allocation
  };

  Trace trace_;
  std::vector<Event> events_;
  std::vector<c10::DataPtr> live_;  // what lives into the next step dies when its successor is born
};

}  // namespace bimkern
