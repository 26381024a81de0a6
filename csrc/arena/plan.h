// A trace with a place for every block.
#pragma once

#include "arena/trace.h"

namespace bimkern {

// Two regions. Blocks that die inside their scope lie in the first, which every scope uses from its start; survivors
// lie in the second, each in its own slot, which another may have when both never live at once.
struct Plan {
  Trace trace;
  int64_t alignment = 0;
  int64_t padding = 0;           // behind every block: debug mode's canary
  std::vector<int64_t> offsets;  // of every block, in its region
  int64_t scope_bytes = 0;       // the first region
  int64_t survivor_bytes = 0;    // the second
  int64_t bound = 0;             // the largest sum of what lives at one time: no plan can do with less

  int64_t peak() const { return scope_bytes + survivor_bytes; }
};

// What a block takes: its bytes and the padding, rounded up.
inline int64_t room(int64_t bytes, int64_t alignment, int64_t padding) {
  return ceil_div(bytes + padding, alignment) * alignment;
}
inline int64_t room(const Plan& plan, const Block& block) { return room(block.bytes, plan.alignment, plan.padding); }

// Throws kBadPlan for a trace that is not well formed.
Plan make_plan(const Trace& trace, int64_t alignment, int64_t padding);

// Throw kBadPlan unless the scopes follow each other and the blocks begin inside of theirs; and unless every block is
// aligned and inside its region, no two that live at the same time overlap, and the bound is true. For what comes from
// a file: a plan that passes can do no harm.
void check(const Trace& trace);
void check(const Plan& plan);

// For every block that dies inside its scope: the blocks of the same scope that had its memory last. If these are dead
// and every one of them kept to the plan, the memory is free. Edges of block i: [first[i], first[i + 1]).
struct Predecessors {
  std::vector<int32_t> first;
  std::vector<int32_t> blocks;
};
Predecessors predecessors(const Plan& plan);

}  // namespace bimkern
