// Between two steps: whether the last one fit the plan, and whether to record the next. Contract: arena.h.
#include <algorithm>

#include "arena/arena.h"

namespace bimkern {
namespace {

// A plan that lasted for fewer steps, or got no memory for its region, doubles the wait before the next recording, so
// that work which never repeats is not planned at every step.
constexpr int64_t kLasting = 16;
constexpr int64_t kMostPatience = 64;

int64_t longer(int64_t patience) { return std::min(2 * patience, kMostPatience); }

}  // namespace

void Arena::end_step() {
  ++statistics_.steps;
  statistics_.upstream_calls_last_step = statistics_.upstream_calls - calls_at_step_;
  statistics_.fallback_peak = fallback_peak_;
  fallback_peak_ = statistics_.fallback_bytes;
  const bool fits = replay_ != nullptr && !diverged_;
  off_plan_ = fits ? 0 : off_plan_ + 1;
  steps_on_plan_ += fits;
  if (replay_ != nullptr) {
    statistics_.diverged_steps += diverged_;
    statistics_.planned_live_peak = replay_->live_peak();
    statistics_.planned_reach = replay_->reach();
  }
  const bool useful = recorder_.active() && !aborted_ && !fits;
  recorder_.stop();
  calls_at_step_ = statistics_.upstream_calls;  // a new plan's regions count for the step that starts
  if (useful && adopted_ == nullptr) {
    replan();
  }
}

void Arena::start_step() {
  if (adopted_ != nullptr) {
    activate(std::move(*adopted_));
    adopted_.reset();
  }
  stepping_ = true;
  visit_before_last_ = last_visit_;
  last_visit_ = visit_;
  diverged_ = aborted_ = false;
  seen_.clear();
  if (replay_ != nullptr) {
    replay_->reset_peaks();
  }
  if (off_plan_ >= patience_) {
    recorder_.start();
  }
}

void Arena::replan() {
  if (replay_ != nullptr) {
    patience_ = steps_on_plan_ < kLasting ? longer(patience_) : 1;
  }
  activate(make_plan(recorder_.trace(), upstream_.alignment(), guard_.padding()));
}

// Without memory for its region the arena continues without a plan.
void Arena::activate(Plan plan) {
  if (replay_ != nullptr && replay_->num_live() > 0) {
    retired_.push_back(std::move(replay_));
  }
  replay_.reset();  // before the new region is reserved: the two never exist at once
  off_plan_ = steps_on_plan_ = 0;
  try {
    const int64_t regions = plan.peak > 0 ? 1 : 0;
    replay_ = std::make_unique<Replay>(std::move(plan), upstream_, ++plan_id_);
    statistics_.upstream_calls += regions;
    ++statistics_.plans;
  } catch (const std::exception&) {
    ++statistics_.refused_plans;
    patience_ = longer(patience_);
  }
}

void Arena::adopt(Plan plan) {
  check(plan);
  const std::lock_guard<std::mutex> lock(mutex_);
  BIMKERN_ARENA_CHECK(plan.alignment == upstream_.alignment() && plan.padding == guard_.padding(), Fault::kBadPlan,
                      "plan: this arena aligns to ", upstream_.alignment(), " bytes and pads by ", guard_.padding(),
                      ", the plan to ", plan.alignment, " and by ", plan.padding);
  adopted_ = std::make_unique<Plan>(std::move(plan));
}

bool Arena::has_plan() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return adopted_ != nullptr || replay_ != nullptr;
}

Plan Arena::plan() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (adopted_ != nullptr) {
    return *adopted_;
  }
  const bool recorded = recorder_.active() && !aborted_ && open_ < 0 && !recorder_.trace().scopes.empty();
  if (recorded && (replay_ == nullptr || diverged_)) {
    return make_plan(recorder_.trace(), upstream_.alignment(), guard_.padding());
  }
  BIMKERN_ARENA_CHECK(replay_ != nullptr, Fault::kBadPlan, "plan: no whole step was recorded yet");
  return replay_->plan();
}

}  // namespace bimkern
