// What an arena counts. Bytes of the plan are rounded up as planned; bytes of the fallback are as asked for.
#pragma once

#include "core/common.h"

namespace bimkern {

struct Statistics {
  int64_t steps = 0;           // that have ended
  int64_t diverged_steps = 0;  // of these, under a plan that did not fit
  int64_t plans = 0;           // put in force so far
  int64_t refused_plans = 0;   // that got no memory for their regions: the run went on without a plan

  int64_t planned = 0;    // allocations served by a plan
  int64_t smaller = 0;    // of these, in a block larger than needed
  int64_t held = 0;       // allocations of what lives into the next step, not served since both slots were in use
  int64_t late = 0;       // other allocations not served since their memory was in use
  int64_t unplanned = 0;  // allocations of scopes without a plan, or after the work left it
  int64_t outlived = 0;   // blocks that lived on after their scope, against the plan
  int64_t overruns = 0;   // canaries found dead
  int64_t strayed = 0;    // blocks let go on a stream that neither owns them nor was recorded; debug mode only

  int64_t upstream_calls = 0;            // allocations from the upstream, regions included
  int64_t upstream_calls_last_step = 0;  // of these, in the last step that has ended

  int64_t live_blocks = 0;    // now
  int64_t planned_bytes = 0;  // live now
  int64_t fallback_bytes = 0;

  int64_t planned_live_peak = 0;  // in the last step that has ended: the largest sum of live planned bytes,
  int64_t planned_reach = 0;      // the highest end in both regions together,
  int64_t fallback_peak = 0;      // and the largest sum of live bytes of the fallback
  int64_t reserved_bytes = 0;     // both regions, and those of earlier plans that still hold live blocks
};

// Allocations while a scope was open that came from elsewhere: another thread (host), another stream (device), which
// may be that of another arena's scope.
struct Elsewhere {
  int64_t allocations = 0;
  int64_t bytes = 0;
};

}  // namespace bimkern
