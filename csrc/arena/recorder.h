// Records a trace while a step runs.
#pragma once

#include "arena/trace.h"

namespace bimkern {

class Recorder {
 public:
  void start();
  void stop() { active_ = false; }
  bool active() const { return active_; }
  // Counts recordings: an allocation of an earlier one has no index in this one.
  uint32_t session() const { return session_; }

  void open(const std::string& scope);
  void close();
  int32_t allocated(int64_t bytes);  // -> index of the allocation
  void freed(int32_t index) { trace_.allocations[static_cast<size_t>(index)].end = trace_.ticks++; }

  const Trace& trace() const { return trace_; }

 private:
  Trace trace_;
  bool active_ = false;
  uint32_t session_ = 0;
};

}  // namespace bimkern
