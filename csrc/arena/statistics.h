// What an arena counts. Bytes of the plan are rounded up as planned; bytes of the fallback are as requested.
#pragma once

#include "core/common.h"

namespace bimkern {

struct Statistics {
  int64_t steps = 0;           // that have ended
  int64_t diverged_steps = 0;  // of these, under a plan that did not fit
  int64_t plans = 0;           // activated so far
  int64_t refused_plans = 0;   // rejected, since their region got no memory: the run continues without a plan

  int64_t planned = 0;       // allocations served by a plan
  int64_t smaller = 0;       // of these, at an offset planned for a larger one
  int64_t still_in_use = 0;  // allocations that live into the next step, not served since both slots were in use
  int64_t late = 0;          // other allocations not served since their memory was not freed yet
  int64_t unplanned = 0;     // allocations in scopes without a plan, or after the work left it
  int64_t leaked = 0;        // allocations that were live after their scope, against the plan
  int64_t overruns = 0;      // canaries found overwritten
  int64_t unsynchronized_frees = 0;  // on a stream that neither owns the allocation nor was recorded; debug mode

  int64_t upstream_calls = 0;            // allocations from the upstream, regions included
  int64_t upstream_calls_last_step = 0;  // of these, in the last step that has ended

  int64_t live_allocations = 0;  // now
  int64_t planned_bytes = 0;     // live now
  int64_t fallback_bytes = 0;

  int64_t planned_live_peak = 0;  // in the last step that has ended: the largest sum of live planned bytes,
  int64_t planned_reach = 0;      // the highest end in the region,
  int64_t fallback_peak = 0;      // and the largest sum of live bytes of the fallback
  int64_t reserved_bytes = 0;     // the region, and those of earlier plans that still hold live allocations
};

// Allocations by others than the owner while a scope was open: by other threads (host), or on other streams (device),
// also inside a scope of another arena.
struct OtherAllocations {
  int64_t count = 0;
  int64_t bytes = 0;
};

}  // namespace bimkern
