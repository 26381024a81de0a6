// Random steps whose allocations several streams use, against an oracle of addresses and one of time: no two live
// allocations overlap, and no stream gets memory, planned or of the pool, that another may still be working on.
//   test_device_random [OPERATIONS]
#include "caught.h"
#include "fake_driver.h"
#include "random_work.h"

#include "arena/device.h"

using namespace bimkern;

namespace {

constexpr Stream kSides[] = {2, 3};

Stream any_side() { return kSides[random_below(2)]; }

class Work {
 public:
  explicit Work(bool debug) : device_(driver_), arena_(device_.make_arena(debug)), debug_(debug) {}

  ~Work() {
    while (!free_later_.empty()) {
      free_one();
    }
    EXPECT(oracle_.count() == 0);
    EXPECT(arena_.arena().statistics().live_allocations == 0);
    device_.close_arena(arena_);
    EXPECT(device_.live_bytes() == 0 && driver_.memory().live_bytes() == 0 && driver_.memory().mistakes() == 0);
  }

  void run(const std::vector<Event>& step, bool disturbed) {
    std::map<int32_t, Live> mine;
    for (const Event& event : step) {
      const std::string name = "scope" + std::to_string(event.index);
      switch (event.kind) {
        case Event::kOpen:
          device_.open(arena_, name, kOwner);
          in_scope_ = true;
          unsynchronized_ = 0;
          break;
        case Event::kClose: {
          const Caught error = caught([&] { device_.close(arena_, name, kOwner, false); });
          EXPECT(error.fault.has_value() == (debug_ && unsynchronized_ > 0));
          EXPECT(!error.fault || error.fault == Fault::kUnsynchronizedFree);
          in_scope_ = false;
          break;
        }
        case Event::kAllocate:
          mine[event.index] = allocate(event.bytes, kOwner);
          if (one_in(4)) {
            lend(mine[event.index]);
          }
          break;
        case Event::kFree:
          free(mine.at(event.index), disturbed && in_scope_ && one_in(50));
          mine.erase(event.index);
          break;
      }
      if (one_in(10)) {  // the loader's, and whatever else is not the step's
        free_later_.push_back(allocate(random_bytes(), one_in(3) && !in_scope_ ? kOwner : any_side()));
      }
      while (free_later_.size() > 20) {
        free_one();
      }
    }
    for (const auto& [index, live] : mine) {
      free_later_.push_back(live);
    }
  }

  int64_t operations() const { return operations_; }
  Statistics statistics() const { return arena_.arena().statistics(); }
  int64_t calls() { return driver_.memory().calls(); }

 private:
  struct Live {
    void* address;
    int64_t bytes;
    Stream owner;
    Stream user;  // the last one
  };

  Live allocate(int64_t bytes, Stream stream) {
    void* address = device_.allocate(bytes, stream);
    oracle_.born(address, bytes);
    EXPECT(!(stream == kOwner && in_scope_) || reinterpret_cast<int64_t>(address) % kDeviceAlignment == 0);
    driver_.expect_done(address, bytes, stream);
    driver_.touch(address, bytes, stream);
    ++operations_;
    return {address, bytes, stream, stream};
  }

  void use(Live& live, Stream user) {
    driver_.wait(user, driver_.record(live.user));
    driver_.touch(live.address, live.bytes, user);
    live.user = user;
  }

  void lend(Live& live) {
    use(live, any_side());
    EXPECT(device_.record(live.address, live.user));
  }

  void free(Live live, bool unsynchronized) {
    if (unsynchronized && live.user == live.owner) {
      use(live, any_side());
      unsynchronized_ += arena_.arena().is_live(live.address);
      device_.free(live.address, live.user);
    } else {
      device_.free(live.address, one_in(2) ? live.owner : live.user);
    }
    oracle_.died(live.address);
    ++operations_;
  }

  void free_one() {
    const auto live = free_later_.begin() + random_below(static_cast<int64_t>(free_later_.size()));
    if (one_in(4)) {
      lend(*live);
    }
    free(*live, false);
    free_later_.erase(live);
  }

  FakeDriver driver_;
  Device device_;
  Device::StreamArena& arena_;
  bool debug_;
  bool in_scope_ = false;
  int64_t unsynchronized_ = 0;  // frees  // in the open scope
  Oracle oracle_{kDriverAlignment};
  std::vector<Live> free_later_;
  int64_t operations_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const int64_t operations = argc > 1 ? std::atoll(argv[1]) : 100'000;
  constexpr int64_t kOfOneArena = 5'000;
  int64_t planned = 0;
  for (int64_t done = 0; done < operations; done += kOfOneArena) {
    Work work(one_in(2));
    while (work.operations() < kOfOneArena) {
      const std::vector<Event> step =
          random_step(1 + static_cast<int32_t>(random_below(4)), 1 + static_cast<int32_t>(random_below(60)));
      const bool disturbed = one_in(2);
      for (int64_t i = 5 + random_below(20); i > 0; --i) {
        work.run(step, disturbed);
      }
    }
    planned += work.statistics().planned;
  }
  EXPECT(planned > operations / 10);  // else nothing was tested
  return failures() > 0;
}
