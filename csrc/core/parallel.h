// A parallel loop that the caller provides. The core has no threads of its own: the bridge injects torch's pool, so
// that the two never compete for the cores, and tests inject what they like.
#pragma once

#include "core/common.h"

namespace bimkern {

struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);

  // Covers [0, count) with disjoint calls of body, in chunks of at least grain where count allows, and returns when all
  // are done.
  void (*run)(int64_t count, int64_t grain, Body body, void* context);

  // f(begin, end) must not throw, and its results must not depend on where the chunks are cut.
  template <typename F>
  void operator()(int64_t count, int64_t grain, const F& f) const {
    if (count <= 0) {
      return;
    }
    const Body body = [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); };
    run(count, grain, body, const_cast<void*>(static_cast<const void*>(&f)));
  }
};

// Rows to give a thread at least, so that it is worth having one.
inline int64_t grain_rows(int64_t row_bytes) {
  constexpr int64_t kGrainBytes = 64 * 1024;
  return row_bytes < kGrainBytes ? kGrainBytes / (row_bytes > 0 ? row_bytes : 1) : 1;
}

inline Parallel serial() {
  return Parallel{[](int64_t count, int64_t, Parallel::Body body, void* context) { body(0, count, context); }};
}

}  // namespace bimkern
