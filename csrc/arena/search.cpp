// Contract: search.h.
#include "arena/search.h"

#include <algorithm>
#include <numeric>
#include <random>

namespace bimkern {
namespace {

using Order = std::vector<int32_t>;

constexpr size_t kMostInOrder = 16384;  // items that are placed in an order: one order takes all of the work
constexpr int kMostRounds = 400;

// The indices of items by falling key, ties as they come in time.
template <typename Key>
Order falling(const std::vector<Item>& items, const Key& key) {
  Order order(items.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return key(items[static_cast<size_t>(a)]) > key(items[static_cast<size_t>(b)]);
  });
  return order;
}

std::vector<Order> orders_of(const std::vector<Item>& items) {
  const auto life = [](const Item& item) { return static_cast<double>(item.end - item.begin); };
  return {falling(items, [](const Item& item) { return item.bytes; }),
          falling(items, [&](const Item& item) { return static_cast<double>(item.bytes) * life(item); }),
          falling(items, life)};
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
    for (size_t i = 0; i < 2 * orders.size() && may_go_on(); ++i) {
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
  bool may_go_on() const { return best_.height > enough_ && work_left_ > 0; }

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

  // What ended up on top was placed too late: it goes first in the next round. Two that change places now and then end
  // the circles in which this alone would run.
  void improve(Order order) {
    std::minstd_rand bits;
    for (int round = 0; round < kMostRounds && may_go_on(); ++round) {
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
  const Order order = orders_of(items).front();
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
