// Making a plan and preparing its replay. Contract: plan.h.
#include "arena/plan.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "arena/layout.h"
#include "arena/regions.h"

namespace bimkern {

Plan make_plan(const Trace& trace, int64_t alignment, int64_t padding) {
  check(trace);
  Plan plan{trace, alignment, padding, std::vector<int64_t>(trace.allocations.size(), 0), 0, 0};
  plan.bound = bound_of(plan);
  lay_out(plan);
  return plan;
}

Predecessors predecessors(const Plan& plan) {
  const std::vector<Allocation>& allocations = plan.trace.allocations;
  Predecessors result;
  std::map<int64_t, int32_t> owners;  // start of a piece of the region -> the scope's allocation that had it last
  int32_t scope = -1;
  for (size_t i = 0; i < allocations.size(); ++i) {
    const Allocation& allocation = allocations[i];
    result.first.push_back(static_cast<int32_t>(result.allocations.size()));
    if (allocation.scope != scope) {
      scope = allocation.scope;
      owners.clear();
      owners.emplace(0, -1);
    }
    const int64_t begin = plan.offsets[i], end = begin + room(plan, allocation);
    auto piece = std::prev(owners.upper_bound(begin));
    int32_t owner = piece->second;
    piece = piece->first == begin ? owners.erase(piece) : std::next(piece);
    for (;; owner = piece->second, piece = owners.erase(piece)) {
      if (owner >= 0 && !survives(plan.trace, allocations[static_cast<size_t>(owner)])) {
        result.allocations.push_back(owner);
      }
      if (piece == owners.end() || piece->first >= end) {
        break;
      }
    }
    owners.emplace(begin, static_cast<int32_t>(i));
    owners.emplace(end, owner);  // does nothing where a piece starts already
  }
  result.first.push_back(static_cast<int32_t>(result.allocations.size()));
  return result;
}

}  // namespace bimkern
