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
  // An allocation of the step before, which lived into this one.
  void freed_late(const std::string& scope, int32_t order, int64_t bytes) {
    late_.push_back({scope, order, bytes, trace_.ticks++});
  }

  // What lives into the next step is taken to die there as the allocation in its place died in this one.
  Trace trace() const;

 private:
  struct Late {
    std::string scope;
    int32_t order;  // of its allocation in the scope
    int64_t bytes;
    int64_t tick;
  };

  Trace trace_;
  std::vector<Late> late_;
  bool active_ = false;
  uint32_t session_ = 0;
};

}  // namespace bimkern
