#include "ops/window_plans.h"

#include <algorithm>

#include "core/error.h"

namespace bimkern {
namespace {

Plan read_plan(const char* op, const WindowPlans& args, int64_t s, int64_t last_position) {
  const int32_t* members = args.members + s * args.groups * args.group_size;
  const int32_t* windows = args.windows + s * args.tokens;
  Plan plan{{}, args.positions + s * args.tokens};
  std::vector<bool> seen(args.tokens);
  std::vector<int32_t> found;  // their numbers
  int64_t count = 0;
  for (int64_t i = 0; i < args.groups * args.group_size; ++i) {
    const int32_t id = members[i];
    if (id < 0) {
      continue;
    }
    BIMKERN_CHECK(id < args.tokens, op, ": members must hold ids in [0, T=", args.tokens, "), got ", id, " in plan ",
                  s);
    BIMKERN_CHECK(!seen[id], op, ": members must not repeat an id within a plan, got ", id, " twice in plan ", s);
    const int32_t position = plan.positions[id];
    BIMKERN_CHECK(position >= 0 && position <= last_position, op, ": positions must lie in [0, ", last_position,
                  "] of this table, got ", position, " in plan ", s);
    seen[id] = true;
    ++count;
    if (i % args.group_size != 0 && members[i - 1] >= 0 && windows[members[i - 1]] == windows[id]) {
      ++plan.windows.back().count;
    } else {
      plan.windows.push_back({members + i, 1});
      found.push_back(windows[id]);
    }
  }
  BIMKERN_CHECK(count == args.tokens, op, ": members must hold all T=", args.tokens, " tokens, got ", count,
                " in plan ", s);
  std::sort(found.begin(), found.end());
  const auto twice = std::adjacent_find(found.begin(), found.end());
  BIMKERN_CHECK(twice == found.end(), op, ": members of a window must be neighbors in one group, got window ", *twice,
                " apart in plan ", s);
  return plan;
}

}  // namespace

std::vector<Plan> read_plans(const char* op, const WindowPlans& args, int64_t relative_positions) {
  std::vector<Plan> plans;
  for (int64_t s = 0; s < args.plans; ++s) {
    plans.push_back(read_plan(op, args, s, relative_positions / 2));
  }
  return plans;
}

}  // namespace bimkern
