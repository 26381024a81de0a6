// Is a trace well formed, and is a plan safe? Contract: plan.h.
#include <iterator>
#include <map>
#include <set>

#include "arena/error.h"
#include "arena/regions.h"

namespace bimkern {
namespace {

constexpr int64_t kMostBytes = int64_t{1} << 48;  // of a block: sums of them stay far from overflow

void check_region(const Plan& plan, const Region& region, int64_t height) {
  std::vector<std::pair<int64_t, size_t>> begins, ends;
  for (size_t i = 0; i < region.items.size(); ++i) {
    const int64_t offset = plan.offsets[region.blocks[i]], bytes = region.items[i].bytes;
    BIMKERN_ARENA_CHECK(offset >= 0 && offset % plan.alignment == 0 && offset <= height - bytes, Fault::kBadPlan,
                        "plan: block ", region.blocks[i], " must lie aligned in a region of ", height,
                        " bytes, got offset ", offset, " for ", bytes);
    begins.emplace_back(region.items[i].begin, i);
    ends.emplace_back(region.items[i].end, i);
  }
  std::sort(begins.begin(), begins.end());
  std::sort(ends.begin(), ends.end());
  std::map<int64_t, size_t> live;  // by offset
  auto dies = ends.begin();
  for (const auto& [tick, i] : begins) {
    for (; dies->first <= tick; ++dies) {
      live.erase(plan.offsets[region.blocks[dies->second]]);
    }
    const int64_t offset = plan.offsets[region.blocks[i]];
    const auto above = live.lower_bound(offset);
    const bool hits_above = above != live.end() && above->first < offset + region.items[i].bytes;
    const bool hits_below =
        above != live.begin() && std::prev(above)->first + region.items[std::prev(above)->second].bytes > offset;
    BIMKERN_ARENA_CHECK(!hits_above && !hits_below, Fault::kBadPlan, "plan: blocks ", region.blocks[i], " and ",
                        region.blocks[(hits_above ? above : std::prev(above))->second],
                        " live at the same time and overlap");
    live.emplace(offset, i);
  }
}

}  // namespace

void check(const Trace& trace) {
  std::set<std::string> names;
  int32_t next = 0;
  int64_t tick = -1;
  for (size_t s = 0; s < trace.scopes.size(); ++s) {
    const ScopeSpan& scope = trace.scopes[s];
    BIMKERN_ARENA_CHECK(scope.begin > tick && scope.end > scope.begin && scope.end < trace.ticks, Fault::kBadPlan,
                        "plan: scope '", scope.name, "' must follow the one before it and end inside the step, got [",
                        scope.begin, ", ", scope.end, ") of ", trace.ticks, " ticks");
    BIMKERN_ARENA_CHECK(
        scope.first == next && scope.last >= next && scope.last <= static_cast<int32_t>(trace.blocks.size()),
        Fault::kBadPlan, "plan: scope '", scope.name, "' must own the blocks from ", next, " on, got [", scope.first,
        ", ", scope.last, ")");
    BIMKERN_ARENA_CHECK(names.insert(scope.name).second, Fault::kBadPlan, "plan: scope '", scope.name,
                        "' is there twice");
    tick = scope.begin;
    for (; next < scope.last; ++next) {
      const Block& block = trace.blocks[static_cast<size_t>(next)];
      BIMKERN_ARENA_CHECK(block.scope == static_cast<int32_t>(s) && block.bytes > 0 && block.bytes <= kMostBytes &&
                              block.begin > tick && block.begin < scope.end && block.end > block.begin &&
                              (block.end < trace.ticks || block.end == kForever),
                          Fault::kBadPlan, "plan: block ", next,
                          " must have bytes and a life that begins in its scope");
      tick = block.begin;
    }
    tick = scope.end;
  }
  BIMKERN_ARENA_CHECK(next == static_cast<int32_t>(trace.blocks.size()), Fault::kBadPlan, "plan: block ", next,
                      " belongs to no scope");
}

void check(const Plan& plan) {
  BIMKERN_ARENA_CHECK(
      plan.alignment > 0 && plan.alignment <= kMostBytes && plan.padding >= 0 && plan.padding <= kMostBytes,
      Fault::kBadPlan, "plan: alignment must be positive and padding not negative, got ", plan.alignment, " and ",
      plan.padding);
  BIMKERN_ARENA_CHECK(plan.offsets.size() == plan.trace.blocks.size(), Fault::kBadPlan,
                      "plan: ", plan.trace.blocks.size(), " blocks need as many offsets, got ", plan.offsets.size());
  check(plan.trace);
  check_region(plan, region_of(plan, true), plan.survivor_bytes);
  for (size_t scope = 0; scope < plan.trace.scopes.size(); ++scope) {
    check_region(plan, region_of(plan, false, scope), plan.scope_bytes);
  }
  const int64_t bound = bound_of(plan);
  BIMKERN_ARENA_CHECK(plan.bound == bound, Fault::kBadPlan, "plan: the largest live sum is ", bound, ", got ",
                      plan.bound);
}

}  // namespace bimkern
