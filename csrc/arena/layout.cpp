// Contract: layout.h.
#include "arena/layout.h"

#include <utility>

#include "arena/regions.h"
#include "arena/search.h"

namespace bimkern {
namespace {

constexpr size_t kMostAround = 4096;  // survivors that scopes are placed around: each is compared with every item

class Layout {
 public:
  explicit Layout(Plan& plan) : plan_(plan), survivors_(region_of(plan, true)) {
    for (size_t scope = 0; scope < plan.trace.scopes.size(); ++scope) {
      scopes_.push_back(region_of(plan, false, scope));
    }
    const auto scopes = static_cast<int64_t>(scopes_.size());
    searches_left_ = scopes + (survivors_.items.empty() ? 0 : 1) + (goes_around() ? 2 * scopes + 3 : 0);
  }

  void run() {
    plan_.peak = kNoLimit;
    above();
    if (goes_around() && plan_.peak > plan_.bound) {
      around(search(survivors_.items, 0).offsets);
    }
    if (goes_around() && plan_.peak > plan_.bound) {
      around(at_both_ends());
    }
  }

 private:
  // Whether scopes may lie around survivors.
  bool goes_around() const { return !survivors_.items.empty() && survivors_.items.size() <= kMostAround; }

  // The scopes from offset 0, and the survivors above the highest of them: none has to be lower than what another needs
  // at least.
  void above() {
    int64_t enough = 0, height = 0;
    for (const Region& scope : scopes_) {
      enough = std::max(enough, largest_live_sum(scope.items));
    }
    std::vector<int64_t> offsets(plan_.trace.allocations.size(), 0);
    for (const Region& scope : scopes_) {
      const Placement placement = search(scope.items, enough);
      set(offsets, scope, placement.offsets, 0);
      height = std::max(height, placement.height);
    }
    const Placement survivors = search(survivors_.items, 0);
    set(offsets, survivors_, survivors.offsets, height);
    keep_if_lower(std::move(offsets), height + survivors.height);
  }

  // The scopes around survivors at given offsets: what is live at the fullest time of one scope need not have room in
  // another.
  void around(const std::vector<int64_t>& survivors) {
    std::vector<int64_t> offsets(plan_.trace.allocations.size(), 0);
    set(offsets, survivors_, survivors, 0);
    int64_t height = 0;
    for (size_t i = 0; i < survivors.size(); ++i) {
      height = std::max(height, survivors[i] + survivors_.items[i].bytes);
    }
    for (size_t scope = 0; scope < scopes_.size() && height < plan_.peak; ++scope) {
      const Placement placement =
          search(scopes_[scope].items, plan_.bound, live_in(plan_.trace.scopes[scope], survivors));
      set(offsets, scopes_[scope], placement.offsets, 0);
      height = std::max(height, placement.height);
    }
    keep_if_lower(std::move(offsets), height);
  }

  // Survivors by turns from the bottom up and from the bound down. A scope reads what the one before it left, and
  // leaves the next: what dies in it lies between the two.
  std::vector<int64_t> at_both_ends() {
    std::vector<Item> ends[2];
    for (size_t i = 0; i < survivors_.items.size(); ++i) {
      ends[i % 2].push_back(survivors_.items[i]);
    }
    const Placement low = search(ends[0], 0), high = search(ends[1], 0);
    const int64_t top = std::max(plan_.bound, low.height + high.height);
    std::vector<int64_t> offsets;
    for (size_t i = 0; i < survivors_.items.size(); ++i) {
      const bool is_low = i % 2 == 0;
      offsets.push_back(is_low ? low.offsets[i / 2] : top - high.offsets[i / 2] - survivors_.items[i].bytes);
    }
    return offsets;
  }

  std::vector<Placed> live_in(const ScopeSpan& scope, const std::vector<int64_t>& survivors) const {
    std::vector<Placed> found;
    for (size_t i = 0; i < survivors.size(); ++i) {
      for (const Item& piece : pieces_of(plan_, plan_.trace.allocations[survivors_.allocations[i]])) {
        if (piece.begin < scope.end && scope.begin < piece.end) {
          found.push_back({survivors[i], survivors[i] + piece.bytes, piece.begin, piece.end});
        }
      }
    }
    std::sort(found.begin(), found.end(), [](const Placed& a, const Placed& b) { return a.offset < b.offset; });
    return found;
  }

  // What one search leaves of its share of the work is for the others.
  Placement search(const std::vector<Item>& items, int64_t enough, const std::vector<Placed>& fixed = {}) {
    Placement placement = place(items, enough, work_left_ / std::max<int64_t>(searches_left_--, 1), fixed);
    work_left_ -= placement.comparisons;
    return placement;
  }

  static void set(std::vector<int64_t>& offsets, const Region& region, const std::vector<int64_t>& given,
                  int64_t bottom) {
    for (size_t i = 0; i < given.size(); ++i) {
      offsets[region.allocations[i]] = bottom + given[i];
    }
  }

  void keep_if_lower(std::vector<int64_t>&& offsets, int64_t height) {
    if (height < plan_.peak) {
      plan_.peak = height;
      plan_.offsets = std::move(offsets);
    }
  }

  Plan& plan_;
  Region survivors_;
  std::vector<Region> scopes_;
  int64_t work_left_ = kSearchWork;
  int64_t searches_left_;
};

}  // namespace

void lay_out(Plan& plan) { Layout(plan).run(); }

}  // namespace bimkern
