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
// orders by size, lifetime and begin alone.
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
          falling(count, life),
          falling(count, [&](size_t i) { return -static_cast<double>(items[i].begin); })};
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
    if (fixed_.empty()) {
      consider(place_by_time(items_, Fit::kBest));
      consider(place_by_time(items_, Fit::kFirst));
    }
    start();
    for (size_t i = 0; i < kShares.size() && may_continue(); ++i) {
      refine(kShares[i], work_left_ - work_left_ / static_cast<int64_t>(kShares.size() - i));
    }
    consider(std::move(best_.placement));
    result_.comparisons = work_ - work_left_;
    return std::move(result_);
  }

 private:
  // An order of items, and what came of it.
  struct State {
    Order order;
    Fit fit = Fit::kFirst;
    Placement placement{{}, kNoLimit};
  };

  bool may_continue() const { return std::min(result_.height, best_.placement.height) > enough_ && work_left_ > 0; }

  void consider(Placement&& placement) {
    if (placement.height < result_.height) {
      result_ = std::move(placement);
    }
  }

  // An order replaces another of the same items if it is lower, or as low and `sideways`.
  void attempt(State& state, Order order, Fit fit, bool sideways = false) {
    const int64_t height = state.placement.height;
    Placement placement = place_in_order(items_, order, fit, fixed_, height);
    work_left_ -= placement.comparisons;
    if (placement.height < height || (sideways && placement.height == height)) {
      state = {std::move(order), fit, std::move(placement)};
    }
  }

  // Puts those first that are larger than a share of the largest live sum; returns how many these are.
  size_t large_first(Order& order, int64_t share) const {
    const auto is_large = [&](int32_t index) {
      return share == 0 || items_[static_cast<size_t>(index)].bytes > largest_live_ / share;
    };
    return static_cast<size_t>(std::stable_partition(order.begin(), order.end(), is_large) - order.begin());
  }

  // The best order of all items to begin with: at least one, and as many as a quarter of the work allows.
  void start() {
    if (result_.height <= enough_) {
      return;
    }
    attempt(best_, orders_.front(), Fit::kBest);
    const int64_t kept = work_left_ - work_left_ / 4;
    for (const int64_t share : kShares) {
      for (Order order : orders_) {
        large_first(order, share);
        for (const Fit fit : {Fit::kFirst, Fit::kBest}) {
          if (may_continue() && work_left_ > kept) {
            attempt(best_, order, fit);
          }
        }
      }
    }
  }

  // The order of the large items is improved while more than `kept` work is left; the others follow it.
  void refine(int64_t share, int64_t kept) {
    Order followers = best_.order;
    const size_t count = large_first(followers, share);
    State large;
    attempt(large, {followers.begin(), followers.begin() + static_cast<std::ptrdiff_t>(count)}, best_.fit);
    climb(large, kept);
    const auto follow = [&](Order order) {
      large_first(order, share);
      std::copy(large.order.begin(), large.order.end(), order.begin());
      attempt(best_, std::move(order), large.fit);
    };
    follow(std::move(followers));
    for (size_t i = 0; i < orders_.size() && share != 0 && may_continue(); ++i) {
      follow(orders_[i]);
    }
  }

  // Small changes to an order, while more than `kept` work is left. What ends up on top was placed too late.
  void climb(State& state, int64_t kept) {
    const size_t tries = kTries + kTriesEach * state.order.size();
    for (size_t round = 0; round < tries && state.placement.height > enough_ && work_left_ > kept; ++round) {
      Order order = bits_() % 2 == 0 ? with_tall_ones_earlier(state) : with_one_moved(state);
      const Fit other = state.fit == Fit::kFirst ? Fit::kBest : Fit::kFirst;
      attempt(state, std::move(order), bits_() % 8 == 0 ? other : state.fit, true);
    }
  }

  // All that reach above some height move forward, equally far.
  Order with_tall_ones_earlier(const State& state) {
    const int64_t height = state.placement.height, range = height - enough_ + enough_ / 200 + 1;
    const int64_t limit = height - 1 - static_cast<int64_t>(bits_()) % range;
    const size_t places = std::max<size_t>(state.order.size() >> bits_() % 10, 1);
    const auto earliness = [&](size_t position) {
      const bool is_tall = top(state, state.order[position]) > limit;
      return (is_tall ? static_cast<int64_t>(places) : 0) - static_cast<int64_t>(position);
    };
    Order order = falling(state.order.size(), earliness);
    for (int32_t& position : order) {
      position = state.order[static_cast<size_t>(position)];
    }
    return order;
  }

  // An item on top moves forward, or one of those in its way moves behind it, or any two change places.
  Order with_one_moved(const State& state) {
    Order order = state.order;
    const size_t high =
        one_of(positions(order.size(), [&](size_t i) { return top(state, order[i]) == state.placement.height; }));
    const auto at = [&](size_t position) { return order.begin() + static_cast<std::ptrdiff_t>(position); };
    const auto kind = bits_() % 4;
    if (kind == 0) {
      std::swap(order[bits_() % order.size()], order[bits_() % order.size()]);
    } else if (kind == 1) {
      const Item& item = items_[static_cast<size_t>(order[high])];
      const size_t other = one_of(positions(high + 1, [&](size_t i) {  // or the item itself, and nothing changes
        const Item& earlier = items_[static_cast<size_t>(order[i])];
        return earlier.begin < item.end && item.begin < earlier.end;
      }));
      std::rotate(at(other), at(other + 1), at(high + 1));
    } else {
      std::rotate(at(bits_() % (high + 1)), at(high), at(high + 1));
    }
    return order;
  }

  int64_t top(const State& state, int32_t index) const {
    return state.placement.offsets[static_cast<size_t>(index)] + items_[static_cast<size_t>(index)].bytes;
  }

  // Those of the first so many positions that are chosen.
  template <typename F>
  static std::vector<size_t> positions(size_t count, const F& chosen) {
    std::vector<size_t> found;
    for (size_t i = 0; i < count; ++i) {
      if (chosen(i)) {
        found.push_back(i);
      }
    }
    return found;
  }

  size_t one_of(const std::vector<size_t>& positions) { return positions[bits_() % positions.size()]; }

  const std::vector<Item>& items_;
  const std::vector<Placed>& fixed_;
  int64_t largest_live_;
  int64_t enough_;
  int64_t work_;
  int64_t work_left_;
  std::vector<Order> orders_;
  Placement result_{{}, kNoLimit};
  State best_;
  std::minstd_rand bits_;
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
