// An upstream of addresses with nothing behind them, never used twice. It knows what is live, and fails on demand.
#pragma once

#include <map>

#include "arena/upstream.h"

namespace bimkern {

class FakeMemory : public Upstream {
 public:
  explicit FakeMemory(int64_t alignment = kHostAlignment) : alignment_(alignment) {}

  void* allocate(int64_t bytes) override {
    if (++calls_ == failing_call_) {
      return nullptr;
    }
    void* address = reinterpret_cast<void*>(next_);
    next_ += (ceil_div(bytes, alignment_) + 1) * alignment_;  // neighbors never touch
    live_.emplace(address, bytes);
    live_bytes_ += bytes;
    return address;
  }
  void deallocate(void* address, int64_t bytes) override {
    const auto found = live_.find(address);
    if (found == live_.end() || found->second != bytes) {
      ++mistakes_;
      return;
    }
    live_bytes_ -= bytes;
    live_.erase(found);
  }
  int64_t alignment() const override { return alignment_; }
  void fill(void*, unsigned char, int64_t) override {}
  bool holds(const void*, unsigned char, int64_t) const override { return true; }

  void fail_at_call(int64_t call) { failing_call_ = call; }  // counted from 1 over the whole life
  int64_t calls() const { return calls_; }                   // of allocate
  int64_t mistakes() const { return mistakes_; }             // deallocations of what was not live, or of another size
  int64_t live_bytes() const { return live_bytes_; }

 private:
  int64_t alignment_;
  int64_t next_ = int64_t{1} << 40;
  int64_t calls_ = 0, failing_call_ = 0, mistakes_ = 0, live_bytes_ = 0;
  std::map<void*, int64_t> live_;
};

}  // namespace bimkern
