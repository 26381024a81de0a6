// A simulated device without memory, which tracks happens-before with one vector clock per stream. It fails the test
// when memory is reused that an earlier operation, not ordered before, may still access.
#pragma once

#include <algorithm>
#include <map>
#include <vector>

#include "../expect.h"
#include "arena/driver.h"
#include "core/error.h"
#include "fake_memory.h"

namespace bimkern {

class FakeDriver : public Driver {
 public:
  void* allocate(int64_t bytes, Stream stream) override {
    // Of two neighbors in this memory one is aligned to kDriverAlignment alone.
    void* address = memory_.allocate(bytes);
    if (address != nullptr) {
      touch(address, bytes, stream);
    }
    return address;
  }
  void free(void* address, int64_t bytes, Stream stream) override {
    BIMKERN_CHECK(!broken_, "free failed");
    expect_done(address, bytes, stream);
    touch(address, bytes, stream);
    works_.pop_back();  // no one gets this address again
    memory_.deallocate(address, bytes);
  }
  Event record(Stream stream) override {
    BIMKERN_CHECK(!broken_, "record failed");
    events_.push_back(clocks_[stream]);
    return events_.size() - 1;
  }
  void wait(Stream stream, Event event) override {
    ++num_waits_;
    for (const auto& [other, tick] : events_[event]) {
      int64_t& known = clocks_[stream][other];
      known = std::max(known, tick);
    }
  }
  void fill(void* address, unsigned char, int64_t bytes, Stream stream) override {
    expect_done(address, bytes, stream);
    touch(address, bytes, stream);
  }
  bool holds(const void* address, unsigned char, int64_t bytes, Stream stream) override {
    expect_done(address, bytes, stream);
    return !overrun_;
  }

  // A kernel on the stream reads or writes the memory.
  void touch(const void* address, int64_t bytes, Stream stream) {
    const int64_t begin = reinterpret_cast<int64_t>(address);
    forget(begin, begin + bytes, stream);
    works_.push_back({begin, begin + bytes, stream, ++clocks_[stream][stream]});
  }
  // All work on the memory is done before whatever the stream is given now.
  void expect_done(const void* address, int64_t bytes, Stream stream) {
    const int64_t begin = reinterpret_cast<int64_t>(address), end = begin + bytes;
    for (const Work& work : works_) {
      EXPECT(work.end <= begin || end <= work.begin || clocks_[stream][work.stream] >= work.tick);
    }
  }

  FakeMemory& memory() { return memory_; }
  int64_t num_waits() const { return num_waits_; }
  void overrun(bool on) { overrun_ = on; }
  void broken(bool on) { broken_ = on; }  // frees and records fail, as all calls do once a device has failed

 private:
  using Clock = std::map<Stream, int64_t>;
  struct Work {
    int64_t begin, end;
    Stream stream;
    int64_t tick;
  };

  // What the new work covers and comes after need not be asked for any more.
  void forget(int64_t begin, int64_t end, Stream stream) {
    size_t kept = 0;
    for (const Work& work : works_) {
      const bool covered = begin <= work.begin && work.end <= end && clocks_[stream][work.stream] >= work.tick;
      if (!covered) {
        works_[kept++] = work;
      }
    }
    works_.resize(kept);
  }

  FakeMemory memory_{kDriverAlignment};
  std::map<Stream, Clock> clocks_;
  std::vector<Clock> events_;
  std::vector<Work> works_;
  int64_t num_waits_ = 0;
  bool overrun_ = false, broken_ = false;
};

}  // namespace bimkern
