// Contract: search.h.
#include "arena/search.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>

namespace bimkern {
namespace {

using Order = std::vector<int32_t>;

constexpr size_t kMostInOrder = 16384;  // items that are placed in an order: one order takes all of the work
constexpr int kMostRounds = 400;

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
std::vector<int64_t> breadths_of(const std::vector<Item>& items) {
  std::map<int64_t, int64_t> changes;
  for (const Item& item : items) {
    changes[item.begin] += item.bytes;
    changes[item.end] -= item.bytes;
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

// The first order begins with what is live at the fullest times, which are compared in fiftieths of the fullest.
std::vector<Order> orders_of(const std::vector<Item>& items) {
  const std::vector<int64_t> breadths = breadths_of(items);
  const int64_t step = items.empty() ? 1 : *std::max_element(breadths.begin(), breadths.end()) / 50 + 1;
  const size_t count = items.size();
  const auto bytes = [&](size_t i) { return static_cast<double>(items[i].bytes); };
  const auto life = [&](size_t i) { return static_cast<double>(items[i].end - items[i].begin); };
  return {falling(count, [&](size_t i) { return std::pair(breadths[i] / step, items[i].bytes); }),
          falling(count, [&](size_t i) { return bytes(i) * life(i); }),
          falling(count, [&](size_t i) { return bytes(i) * std::sqrt(life(i)); }), falling(count, bytes),
          falling(count, life)};
}

class Search {
 public:
  Search(const std::vector<Item>& items, int64_t enough, int64_t work)
      : items_(items), enough_(std::max(enough, largest_live_sum(items))), work_left_(work) {}

  Placement run() {
    best_ = place_by_time(items_, Fit::kBest);
    consider(place_by_time(items_, Fit::kFirst));
    const std::vector<Order> orders = orders_of(items_);
    size_t lowest = 0;
    int64_t lowest_height = -1;
    for (size_t i = 0; i < 2 * orders.size() && may_continue(); ++i) {
      const int64_t height = attempt(orders[i / 2], i % 2 == 0 ? Fit::kFirst : Fit::kBest);
      if (lowest_height < 0 || height < lowest_height) {
        lowest = i / 2;
        lowest_height = height;
      }
    }
    improve(orders[lowest]);
    return std::move(best_);
  }

 private:
  bool may_continue() const { return best_.height > enough_ && work_left_ > 0; }

  void consider(Placement&& placement) {
    if (placement.height < best_.height) {
      best_ = std::move(placement);
    }
  }

  int64_t attempt(const Order& order, Fit fit) {
    work_left_ -= static_cast<int64_t>(order.size() * order.size() / 2);
    last_ = place_in_order(items_, order, fit);
    const int64_t height = last_.height;
    consider(Placement(last_));
    return height;
  }

  // An item that ends up on top was placed too late: it goes first in the next round. A random swap now and then breaks
  // cycles.
  void improve(Order order) {
    std::minstd_rand bits;
    for (int round = 0; round < kMostRounds && may_continue(); ++round) {
      attempt(order, round % 2 == 0 ? Fit::kFirst : Fit::kBest);
      if (round % 4 == 3) {
        std::swap(order[bits() % order.size()], order[bits() % order.size()]);
      }
      std::stable_partition(order.begin(), order.end(), [&](int32_t index) {
        const size_t i = static_cast<size_t>(index);
        return last_.offsets[i] + items_[i].bytes == last_.height;
      });
    }
  }

  const std::vector<Item>& items_;
  int64_t enough_;
  int64_t work_left_;
  Placement best_, last_;
};

}  // namespace

Placement place(const std::vector<Item>& items, int64_t enough, int64_t work) {
  if (items.size() <= kMostInOrder) {
    return Search(items, enough, work).run();
  }
  // The small ones of a long trace hold few of its bytes: they get a floor of their own above the others.
  const Order order = falling(items.size(), [&](size_t i) { return items[i].bytes; });
  std::vector<Item> large, small;
  for (size_t i = 0; i < order.size(); ++i) {
    (i < kMostInOrder ? large : small).push_back(items[static_cast<size_t>(order[i])]);
  }
  const Placement lower = Search(large, enough, work).run(), upper = place_by_time(small, Fit::kBest);
  Placement stacked{std::vector<int64_t>(items.size(), 0), lower.height + upper.height};
  for (size_t i = 0; i < order.size(); ++i) {
    stacked.offsets[static_cast<size_t>(order[i])] =
        i < kMostInOrder ? lower.offsets[i] : lower.height + upper.offsets[i - kMostInOrder];
  }
  for (const Fit fit : {Fit::kBest, Fit::kFirst}) {
    Placement by_time = place_by_time(items, fit);
    if (by_time.height < stacked.height) {
      stacked = std::move(by_time);
    }
  }
  return stacked;
}

}  // namespace bimkern
