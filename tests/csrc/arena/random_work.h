// Random training-like work for an arena, and an oracle that checks its addresses.
#pragma once

#include <cstdlib>
#include <iterator>
#include <map>
#include <random>

#include "../expect.h"
#include "arena/arena.h"
#include "fake_memory.h"

namespace bimkern {

constexpr Owner kOwner = 1;

// A seed for every run of the tests; printed, so that a failure can be repeated with BIMKERN_TEST_SEED.
inline std::mt19937& random_bits() {
  static std::mt19937 bits([] {
    const char* given = std::getenv("BIMKERN_TEST_SEED");
    const unsigned seed =
        given != nullptr ? static_cast<unsigned>(std::strtoul(given, nullptr, 10)) : std::random_device{}();
    std::fprintf(stderr, "BIMKERN_TEST_SEED=%u\n", seed);
    return seed;
  }());
  return bits;
}

inline int64_t random_below(int64_t limit) {
  return static_cast<int64_t>(random_bits()() % static_cast<uint64_t>(limit));
}
inline bool one_in(int64_t n) { return random_below(n) == 0; }

// Few large allocations and many small ones, as in training; some sizes come often.
inline int64_t random_bytes() {
  const int64_t scale = int64_t{1} << (2 + random_below(20));
  return one_in(3) ? scale : 1 + random_below(scale);
}

// What is live, by address: no two may overlap, and every address is aligned.
class Oracle {
 public:
  explicit Oracle(int64_t alignment) : alignment_(alignment) {}

  void born(void* address, int64_t bytes) {
    const int64_t begin = reinterpret_cast<int64_t>(address);
    EXPECT(begin % alignment_ == 0);
    const auto above = live_.lower_bound(begin);
    EXPECT(above == live_.end() || above->first >= begin + bytes);
    EXPECT(above == live_.begin() || std::prev(above)->first + std::prev(above)->second <= begin);
    EXPECT(live_.emplace(begin, bytes).second);
  }
  void died(void* address) { EXPECT(live_.erase(reinterpret_cast<int64_t>(address)) == 1); }
  int64_t count() const { return static_cast<int64_t>(live_.size()); }

 private:
  int64_t alignment_;
  std::map<int64_t, int64_t> live_;
};

// One step as a row of events: an allocation has bytes, a free names the allocation.
struct Event {
  enum Kind { kOpen, kClose, kAllocate, kFree } kind;
  int32_t index;  // of the scope, or of the allocation in the step
  int64_t bytes;
};

// Scopes of stack-like and of mixed lifetimes; some allocations outlive their scope, a few the step.
inline std::vector<Event> random_step(int32_t num_scopes, int32_t allocations) {
  std::vector<Event> step;
  std::vector<int32_t> live;
  int32_t next = 0;
  const auto free_one = [&](size_t i) {
    step.push_back({Event::kFree, live[i], 0});
    live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
  };
  for (int32_t scope = 0; scope < num_scopes; ++scope) {
    step.push_back({Event::kOpen, scope, 0});
    for (int32_t i = 0; i < allocations; ++i) {
      step.push_back({Event::kAllocate, next, random_bytes()});
      live.push_back(next++);
      while (!live.empty() && one_in(2)) {
        free_one(one_in(3) ? static_cast<size_t>(random_below(static_cast<int64_t>(live.size()))) : live.size() - 1);
      }
    }
    const size_t survivors = live.empty() ? 0 : static_cast<size_t>(random_below(8));
    while (live.size() > survivors) {
      free_one(live.size() - 1);
    }
    step.push_back({Event::kClose, scope, 0});
    while (!live.empty() && one_in(3)) {
      free_one(0);
    }
  }
  return step;
}

}  // namespace bimkern
