// Greedy placements. Contract: placement.h.
#include "arena/placement.h"

#include <algorithm>
#include <map>
#include <set>

namespace bimkern {
namespace {

struct Event {
  int64_t tick;
  int32_t item;
  bool begins;
};

// All begins and ends in order; at one tick, ends come first.
std::vector<Event> events_of(const std::vector<Item>& items) {
  std::vector<Event> events;
  events.reserve(2 * items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    events.push_back({items[i].begin, static_cast<int32_t>(i), true});
    events.push_back({items[i].end, static_cast<int32_t>(i), false});
  }
  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) {
    return a.tick != b.tick ? a.tick < b.tick : a.begins != b.begins ? !a.begins : a.item < b.item;
  });
  return events;
}

// The free space below a top that rises on demand.
class Gaps {
 public:
  int64_t take(int64_t bytes, Fit fit) {
    const auto found = fit == Fit::kBest ? best(bytes) : first(bytes);
    if (found == by_offset_.end()) {
      return rise(bytes);
    }
    const auto [offset, size] = *found;
    remove(offset, size);
    if (size > bytes) {
      insert(offset + bytes, size - bytes);
    }
    return offset;
  }

  void give_back(int64_t offset, int64_t bytes) {
    auto after = by_offset_.lower_bound(offset);
    if (after != by_offset_.begin()) {
      const auto [before, size] = *std::prev(after);
      if (before + size == offset) {
        remove(before, size);
        offset = before;
        bytes += size;
      }
    }
    after = by_offset_.lower_bound(offset);
    if (after != by_offset_.end() && after->first == offset + bytes) {
      const int64_t size = after->second;
      remove(offset + bytes, size);
      bytes += size;
    }
    insert(offset, bytes);
  }

  int64_t top() const { return top_; }

 private:
  using ByOffset = std::map<int64_t, int64_t>;

  ByOffset::iterator first(int64_t bytes) {
    return std::find_if(by_offset_.begin(), by_offset_.end(), [=](const auto& gap) { return gap.second >= bytes; });
  }

  ByOffset::iterator best(int64_t bytes) {
    const auto found = by_size_.lower_bound({bytes, 0});
    return found == by_size_.end() ? by_offset_.end() : by_offset_.find(found->second);
  }

  // A gap that ends at the top is used up before the top rises.
  int64_t rise(int64_t bytes) {
    int64_t offset = top_;
    if (!by_offset_.empty()) {
      const auto [last, size] = *by_offset_.rbegin();
      if (last + size == top_) {
        remove(last, size);
        offset = last;
      }
    }
    top_ = offset + bytes;
    return offset;
  }

  void insert(int64_t offset, int64_t size) {
    by_offset_.emplace(offset, size);
    by_size_.emplace(size, offset);
  }

  void remove(int64_t offset, int64_t size) {
    by_offset_.erase(offset);
    by_size_.erase({size, offset});
  }

  ByOffset by_offset_;
  std::set<std::pair<int64_t, int64_t>> by_size_;
  int64_t top_ = 0;
};

// The offset for `item` among `placed`, which is sorted by offset.
int64_t offset_among(const std::vector<Placed>& placed, const Item& item, Fit fit) {
  int64_t best = -1, best_size = 0, reached = 0;
  for (const Placed& other : placed) {
    if (other.begin >= item.end || other.end <= item.begin) {
      continue;
    }
    const int64_t size = other.offset - reached;
    if (size >= item.bytes && (best < 0 || size < best_size)) {
      best = reached;
      best_size = size;
      if (fit == Fit::kFirst) {
        return best;
      }
    }
    reached = std::max(reached, other.top);
  }
  return best < 0 ? reached : best;
}

}  // namespace

int64_t largest_live_sum(const std::vector<Item>& items) {
  int64_t live = 0, largest = 0;
  for (const Event& event : events_of(items)) {
    const int64_t bytes = items[static_cast<size_t>(event.item)].bytes;
    live += event.begins ? bytes : -bytes;
    largest = std::max(largest, live);
  }
  return largest;
}

Placement place_by_time(const std::vector<Item>& items, Fit fit) {
  Placement result{std::vector<int64_t>(items.size(), 0)};
  Gaps gaps;
  for (const Event& event : events_of(items)) {
    const size_t i = static_cast<size_t>(event.item);
    if (event.begins) {
      result.offsets[i] = gaps.take(items[i].bytes, fit);
    } else {
      gaps.give_back(result.offsets[i], items[i].bytes);
    }
  }
  result.height = gaps.top();
  return result;
}

Placement place_in_order(const std::vector<Item>& items, const std::vector<int32_t>& order, Fit fit,
                         const std::vector<Placed>& fixed, int64_t most) {
  Placement result{std::vector<int64_t>(items.size(), 0)};
  std::vector<Placed> placed = fixed;
  placed.reserve(fixed.size() + order.size());
  for (const int32_t index : order) {
    const Item& item = items[static_cast<size_t>(index)];
    const int64_t offset = offset_among(placed, item, fit);
    result.comparisons += static_cast<int64_t>(placed.size());
    const Placed added{offset, offset + item.bytes, item.begin, item.end};
    result.offsets[static_cast<size_t>(index)] = offset;
    result.height = std::max(result.height, added.top);
    if (result.height > most) {
      break;
    }
    const auto above = std::upper_bound(placed.begin(), placed.end(), added,
                                        [](const Placed& a, const Placed& b) { return a.offset < b.offset; });
    placed.insert(above, added);
  }
  return result;
}

}  // namespace bimkern
