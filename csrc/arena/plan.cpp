// Making a plan and preparing its replay. Contract: plan.h.
#include "arena/plan.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "arena/regions.h"
#include "arena/search.h"

namespace bimkern {
namespace {

int64_t lay_out(Plan& plan, const Region& region, int64_t enough, int64_t work) {
  const Placement placement = place(region.items, enough, work);
  for (size_t i = 0; i < region.allocations.size(); ++i) {
    plan.offsets[region.allocations[i]] = placement.offsets[i];
  }
  return placement.height;
}

}  // namespace

Plan make_plan(const Trace& trace, int64_t alignment, int64_t padding) {
  check(trace);
  Plan plan{trace, alignment, padding, std::vector<int64_t>(trace.allocations.size(), 0), 0, 0, 0};
  // The scopes share a region: none has to be lower than what another needs at least.
  std::vector<Region> scopes;
  int64_t enough = 0;
  for (size_t scope = 0; scope < trace.scopes.size(); ++scope) {
    scopes.push_back(region_of(plan, false, scope));
    enough = std::max(enough, largest_live_sum(scopes.back().items));
  }
  const int64_t work = kSearchWork / static_cast<int64_t>(scopes.size() + 1);
  for (const Region& scope : scopes) {
    plan.scope_bytes = std::max(plan.scope_bytes, lay_out(plan, scope, enough, work));
  }
  plan.survivor_bytes = lay_out(plan, region_of(plan, true), 0, work);
  plan.bound = bound_of(plan);
  return plan;
}

Predecessors predecessors(const Plan& plan) {
  Predecessors result;
  std::map<int64_t, int32_t> owners;  // start of a piece of the first region -> the allocation that had it last
  int32_t scope = -1;
  for (size_t i = 0; i < plan.trace.allocations.size(); ++i) {
    const Allocation& allocation = plan.trace.allocations[i];
    result.first.push_back(static_cast<int32_t>(result.allocations.size()));
    if (allocation.scope != scope) {
      scope = allocation.scope;
      owners.clear();
      owners.emplace(0, -1);
    }
    if (survives(plan.trace, allocation)) {
      continue;
    }
    const int64_t begin = plan.offsets[i], end = begin + room(plan, allocation);
    auto piece = std::prev(owners.upper_bound(begin));
    int32_t owner = piece->second;
    piece = piece->first == begin ? owners.erase(piece) : std::next(piece);
    for (;; owner = piece->second, piece = owners.erase(piece)) {
      if (owner >= 0) {
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
