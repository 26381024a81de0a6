// Contract: search.h.
#include "arena/search.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <map>
#include <numeric>
#include <random>

namespace bimkern {
namespace {

using Order = std::vector<int32_t>;

constexpr size_t kMostInOrder = 16384;  // items that are placed in an order: one order takes all of the work
constexpr std::array<int64_t, 3> kShares{200, 600, 0};  // of the largest live sum: what is larger is placed first
constexpr size_t kTries = 500, kTriesEach = 50;         // of changes to an order, and for each of its items

// So many indices by falling key(index), ties as they come.
template <typename Key>
Order falling(size_t count, const Key& key) {
  Order order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return key(static_cast<size_t>(a)) > key(static_cast<size_t>(b)); });
  return order;
}

// The largest sum of what lives at one time of each item's life.
std::vector<int64_t> breadths_of(const std::vector<Item>& items, const std::vector<Placed>& fixed) {
  std::map<int64_t, int64_t> changes;
  for (const Item& item : items) {
    changes[item.begin] += item.bytes;
    changes[item.end] -= item.bytes;
  }
  for (const Placed& other : fixed) {
    changes[other.begin] += other.top - other.offset;
    changes[other.end] -= other.top - other.offset;
  }
  std::vector<int64_t> ticks, live;
  for (const auto& [tick, change] : changes) {
    ticks.push_back(tick);
    live.push_back((live.empty() ? 0 : live.back()) + change);
  }
  std::vector<std::vector<int64_t>> largest{std::move(live)};  // [k][i]: of 2^k ticks from the i-th on
  for (size_t span = 1; 2 * span <= ticks.size(); span *= 2) {
    const std::vector<int64_t>& half = largest.back();
    std::vector<int64_t> whole;
    for (size_t i = 0; i + 2 * span <= ticks.size(); ++i) {
      whole.push_back(std::max(half[i], half[i + span]));
    }
    largest.push_back(std::move(whole));
  }
  std::vector<int64_t> breadths;
  for (const Item& item : items) {
    const auto index_of = [&](int64_t tick) {
      return std::lower_bound(ticks.begin(), ticks.end(), tick) - ticks.begin();
    };
    const auto first = static_cast<size_t>(index_of(item.begin)), last = static_cast<size_t>(index_of(item.end));
    size_t level = 0;
    while (size_t{2} << level <= last - first) {
      ++level;
    }
    breadths.push_back(std::max(largest[level][first], largest[level][last - (size_t{1} << level)]));
  }
  return breadths;
}

// Orders that begin with what is live at the fullest times, which are compared in so many parts of the fullest, and
// orders by size and lifetime alone.
std::vector<Order> orders_of(const std::vector<Item>& items, const std::vector<Placed>& fixed) {
  const std::vector<int64_t> breadths = breadths_of(items, fixed);
  const int64_t fullest = items.empty() ? 0 : *std::max_element(breadths.begin(), breadths.end());
  const auto bytes = [&](size_t i) { return static_cast<double>(items[i].bytes); };
  const auto life = [&](size_t i) { return static_cast<double>(items[i].end - items[i].begin); };
  const auto both = [&](size_t i) { return bytes(i) * std::sqrt(life(i)); };
  const auto by_breadth = [&](int64_t parts, const auto& key) {
    return falling(items.size(), [&](size_t i) { return std::pair(breadths[i] / (fullest / parts + 1), key(i)); });
  };
  const size_t count = items.size();
  return {by_breadth(50, bytes),
          by_breadth(50, both),
          by_breadth(20, bytes),
          by_breadth(1000, life),
          falling(count, both),
          falling(count, bytes),
          falling(count, [&](size_t i) { return bytes(i) * life(i); }),
          falling(count, life)};
}

class Search {
 public:
  Search(const std::vector<Item>& items, const std::vector<Placed>& fixed, int64_t enough, int64_t work)
      : items_(items),
        fixed_(fixed),
        largest_live_(largest_live_sum(items)),
        enough_(std::max(enough, largest_live_)),
        work_(work),
        work_left_(work),
        orders_(orders_of(items, fixed)) {}

  Placement run() {
    best_.height = kNoLimit;
    if (fixed_.empty()) {
      consider(place_by_time(items_, Fit::kBest));
      consider(place_by_time(items_, Fit::kFirst));
    } else {
      consider(attempt(orders_.front(), Fit::kBest));
    }
    for (size_t i = 0; i < kShares.size() && may_continue(); ++i) {
      const int64_t kept = work_left_ - work_left_ / static_cast<int64_t>(kShares.size() - i);
      refine(kShares[i], kept);
    }
    best_.comparisons = work_ - work_left_;
    return std::move(best_);
  }

 private:
  // Large items in an order, and what came of it.
  struct State {
    Order order;
    Fit fit;
    Placement placement;
  };

  bool may_continue() const { return best_.height > enough_ && work_left_ > 0; }

  void consider(Placement&& placement) {
    if (placement.height < best_.height) {
      best_ = std::move(placement);
    }
  }

  Placement attempt(const Order& order, Fit fit, int64_t most = kNoLimit) {
    Placement placement = place_in_order(items_, order, fit, fixed_, most);
    work_left_ -= placement.comparisons;
    return placement;
  }

  // Those of an order that are larger than a share of the largest live sum, or the others.
  Order part(const Order& order, int64_t share, bool large) const {
    Order found;
    std::copy_if(order.begin(), order.end(), std::back_inserter(found), [&](int32_t index) {
      return (share == 0 || items_[static_cast<size_t>(index)].bytes > largest_live_ / share) == large;
    });
    return found;
  }

  // The best order of the large items is improved while more than `kept` work is left; the others follow it.
  void refine(int64_t share, int64_t kept) {
    State state{{}, Fit::kFirst, {{}, kNoLimit}};
    for (size_t i = 0; i < 2 * orders_.size() && state.placement.height > enough_ && work_left_ > kept; ++i) {
      Order order = part(orders_[i / 2], share, true);
      const Fit fit = i % 2 == 0 ? Fit::kFirst : Fit::kBest;
      Placement placement = attempt(order, fit, state.placement.height);
      if (placement.height < state.placement.height) {
        state = {std::move(order), fit, std::move(placement)};
      }
    }
    if (state.placement.height == kNoLimit) {  // no work was left for one order
      return;
    }
    climb(state, kept);
    for (const Order& order : orders_) {
      if (may_continue()) {
        Order all = state.order;
        const Order others = part(order, share, false);
        all.insert(all.end(), others.begin(), others.end());
        consider(attempt(all, state.fit));
      }
    }
  }

  // An item that ends up on top was placed too late. It moves forward, or one of those in its way moves behind it;
  // whatever is not higher replaces the order.
  void climb(State& state, int64_t kept) {
    const size_t count = state.order.size();
    const size_t tries = kTries + kTriesEach * count;
    std::minstd_rand bits;
    for (size_t round = 0; round < tries && state.placement.height > enough_ && work_left_ > kept; ++round) {
      Order order = state.order;
      const size_t high =
          one_of(positions(state, [&](int32_t index) { return top(state, index) == state.placement.height; }), bits);
      const auto at = [&](size_t position) { return order.begin() + static_cast<std::ptrdiff_t>(position); };
      const auto kind = bits() % 4;
      if (kind == 0) {
        std::swap(order[bits() % count], order[high]);
      } else if (kind == 1) {
        const Item& item = items_[static_cast<size_t>(order[high])];
        std::vector<size_t> in_its_way = positions(state, [&](int32_t index) {
          const Item& other = items_[static_cast<size_t>(index)];
          return other.begin < item.end && item.begin < other.end;
        });
        in_its_way.erase(std::find(in_its_way.begin(), in_its_way.end(), high), in_its_way.end());
        if (in_its_way.empty()) {
          continue;
        }
        const size_t other = one_of(in_its_way, bits);
        std::rotate(at(other), at(other + 1), at(high + 1));
      } else {
        const size_t earlier = bits() % (high + 1);
        std::rotate(at(earlier), at(high), at(high + 1));
      }
      const Fit fit = bits() % 8 != 0 ? state.fit : state.fit == Fit::kFirst ? Fit::kBest : Fit::kFirst;
      Placement placement = attempt(order, fit, state.placement.height);
      if (placement.height <= state.placement.height) {
        state = {std::move(order), fit, std::move(placement)};
      }
    }
  }

  int64_t top(const State& state, int32_t index) const {
    return state.placement.offsets[static_cast<size_t>(index)] + items_[static_cast<size_t>(index)].bytes;
  }

  template <typename F>
  static std::vector<size_t> positions(const State& state, const F& chosen) {
    std::vector<size_t> found;
    for (size_t i = 0; i < state.order.size(); ++i) {
      if (chosen(state.order[i])) {
        found.push_back(i);
      }
    }
    return found;
  }

  static size_t one_of(const std::vector<size_t>& positions, std::minstd_rand& bits) {
    return positions[bits() % positions.size()];
  }

  const std::vector<Item>& items_;
  const std::vector<Placed>& fixed_;
  int64_t largest_live_;
  int64_t enough_;
  int64_t work_;
  int64_t work_left_;
  std::vector<Order> orders_;
  Placement best_;
};

}  // namespace

Placement place(const std::vector<Item>& items, int64_t enough, int64_t work, const std::vector<Placed>& fixed) {
  if (items.size() <= kMostInOrder) {
    return Search(items, fixed, enough, work).run();
  }
  // The small ones of a long trace hold few of its bytes: they get a floor of their own above the others.
  int64_t floor = 0;
  for (const Placed& other : fixed) {
    floor = std::max(floor, other.top);
  }
  const Order order = falling(items.size(), [&](size_t i) { return items[i].bytes; });
  std::vector<Item> large, small;
  for (size_t i = 0; i < order.size(); ++i) {
    (i < kMostInOrder ? large : small).push_back(items[static_cast<size_t>(order[i])]);
  }
  const Placement lower = Search(large, fixed, enough, work).run(), upper = place_by_time(small, Fit::kBest);
  floor = std::max(floor, lower.height);
  Placement stacked{std::vector<int64_t>(items.size(), 0), floor + upper.height, lower.comparisons};
  for (size_t i = 0; i < order.size(); ++i) {
    stacked.offsets[static_cast<size_t>(order[i])] =
        i < kMostInOrder ? lower.offsets[i] : floor + upper.offsets[i - kMostInOrder];
  }
  if (fixed.empty()) {
    for (const Fit fit : {Fit::kBest, Fit::kFirst}) {
      Placement by_time = place_by_time(items, fit);
      if (by_time.height < stacked.height) {
        stacked = std::move(by_time);
        stacked.comparisons = lower.comparisons;
      }
    }
  }
  return stacked;
}

}  // namespace bimkern
