// Is a trace well formed, and is a plan safe? Contract: plan.h.
#include <iterator>
#include <map>
#include <set>

#include "arena/error.h"
#include "arena/regions.h"

namespace bimkern {
namespace {

constexpr int64_t kMostBytes = int64_t{1} << 48;  // of an allocation: sums of them stay far from overflow
constexpr int64_t kMostTicks = int64_t{1} << 48;  // of a step; likewise

void check_offsets(const Plan& plan) {
  struct Piece {
    Item item;
    size_t allocation;
  };
  std::vector<Piece> pieces;
  for (size_t i = 0; i < plan.offsets.size(); ++i) {
    for (const Item& item : pieces_of(plan, plan.trace.allocations[i])) {
      const int64_t offset = plan.offsets[i];
      BIMKERN_ARENA_CHECK(offset >= 0 && offset % plan.alignment == 0 && offset <= plan.peak - item.bytes,
                          Fault::kBadPlan, "plan: allocation ", i, " must be aligned inside a region of ", plan.peak,
                          " bytes, got offset ", offset, " for ", item.bytes);
      pieces.push_back({item, i});
    }
  }
  std::vector<std::pair<int64_t, size_t>> begins, ends;
  for (size_t i = 0; i < pieces.size(); ++i) {
    begins.emplace_back(pieces[i].item.begin, i);
    ends.emplace_back(pieces[i].item.end, i);
  }
  std::sort(begins.begin(), begins.end());
  std::sort(ends.begin(), ends.end());
  std::map<int64_t, size_t> live;  // by offset
  auto dies = ends.begin();
  for (const auto& [tick, i] : begins) {
    for (; dies->first <= tick; ++dies) {
      live.erase(plan.offsets[pieces[dies->second].allocation]);
    }
    const int64_t offset = plan.offsets[pieces[i].allocation];
    const auto above = live.lower_bound(offset);
    const bool hits_above = above != live.end() && above->first < offset + pieces[i].item.bytes;
    const bool hits_below =
        above != live.begin() && std::prev(above)->first + pieces[std::prev(above)->second].item.bytes > offset;
    BIMKERN_ARENA_CHECK(!hits_above && !hits_below, Fault::kBadPlan, "plan: allocations ", pieces[i].allocation,
                        " and ", pieces[(hits_above ? above : std::prev(above))->second].allocation,
                        " live at the same time and overlap");
    live.emplace(offset, i);
  }
}

}  // namespace

void check(const Trace& trace) {
  BIMKERN_ARENA_CHECK(trace.ticks <= kMostTicks, Fault::kBadPlan, "plan: a step must have fewer ticks, got ",
                      trace.ticks);
  std::set<std::string> names;
  int32_t next = 0;
  int64_t tick = -1;
  for (size_t s = 0; s < trace.scopes.size(); ++s) {
    const ScopeSpan& scope = trace.scopes[s];
    BIMKERN_ARENA_CHECK(scope.begin > tick && scope.end > scope.begin && scope.end < trace.ticks, Fault::kBadPlan,
                        "plan: scope '", scope.name, "' must follow the one before it and end inside the step, got [",
                        scope.begin, ", ", scope.end, ") of ", trace.ticks, " ticks");
    BIMKERN_ARENA_CHECK(
        scope.first == next && scope.last >= next && scope.last <= static_cast<int32_t>(trace.allocations.size()),
        Fault::kBadPlan, "plan: scope '", scope.name, "' must own the allocations from ", next, " on, got [",
        scope.first, ", ", scope.last, ")");
    BIMKERN_ARENA_CHECK(names.insert(scope.name).second, Fault::kBadPlan, "plan: scope '", scope.name,
                        "' appears twice");
    tick = scope.begin;
    for (; next < scope.last; ++next) {
      const Allocation& allocation = trace.allocations[static_cast<size_t>(next)];
      BIMKERN_ARENA_CHECK(allocation.scope == static_cast<int32_t>(s) && allocation.bytes > 0 &&
                              allocation.bytes <= kMostBytes && allocation.begin > tick &&
                              allocation.begin < scope.end && allocation.end > allocation.begin &&
                              (allocation.end == kForever || allocation.end < 2 * trace.ticks),
                          Fault::kBadPlan, "plan: allocation ", next,
                          " must have a positive size and a lifetime that begins in its scope");
      tick = allocation.begin;
    }
    tick = scope.end;
  }
  BIMKERN_ARENA_CHECK(next == static_cast<int32_t>(trace.allocations.size()), Fault::kBadPlan, "plan: allocation ",
                      next, " belongs to no scope");
}

void check(const Plan& plan) {
  BIMKERN_ARENA_CHECK(
      plan.alignment > 0 && plan.alignment <= kMostBytes && plan.padding >= 0 && plan.padding <= kMostBytes,
      Fault::kBadPlan, "plan: alignment must be positive and padding not negative, got ", plan.alignment, " and ",
      plan.padding);
  BIMKERN_ARENA_CHECK(plan.offsets.size() == plan.trace.allocations.size(), Fault::kBadPlan,
                      "plan: ", plan.trace.allocations.size(), " allocations need as many offsets, got ",
                      plan.offsets.size());
  check(plan.trace);
  check_offsets(plan);
  const int64_t bound = bound_of(plan);
  BIMKERN_ARENA_CHECK(plan.bound == bound, Fault::kBadPlan, "plan: the largest live sum is ", bound, ", got ",
                      plan.bound);
}

}  // namespace bimkern
