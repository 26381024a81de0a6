// A driver's pool, counted, and as the upstream of an arena that one stream owns. Not thread-safe: the device's lock
// holds for all of it.
#pragma once

#include <algorithm>
#include <exception>
#include <unordered_map>

#include "arena/driver.h"
#include "arena/upstream.h"

namespace bimkern {

// For what dies while an exception unwinds and must not throw another: says it on stderr, the first time in a process.
// After a device has failed, every later call fails for the same reason.
void report_once(const std::exception& error) noexcept;

class CountedPool {
 public:
  explicit CountedPool(Driver& driver) : driver_(driver) {}

  void* allocate(int64_t bytes, Stream stream) {
    void* address = driver_.allocate(bytes, stream);
    if (address != nullptr) {
      live_bytes_ += bytes;
      peak_bytes_ = std::max(peak_bytes_, live_bytes_);
    }
    return address;
  }
  // What the driver throws is reported: regions are freed by destructors.
  void free(void* address, int64_t bytes, Stream stream) noexcept;

  Driver& driver() const { return driver_; }
  int64_t live_bytes() const { return live_bytes_; }
  int64_t peak_bytes() const { return peak_bytes_; }  // so far

 private:
  Driver& driver_;
  int64_t live_bytes_ = 0, peak_bytes_ = 0;
};

// The driver promises a smaller alignment than plans have: every allocation begins late in its own, by at most
// kDeviceAlignment - kDriverAlignment.
class StreamMemory : public Upstream {
 public:
  explicit StreamMemory(CountedPool& pool) : pool_(pool) {}

  Stream stream() const { return stream_; }
  void belongs_to(Stream stream) { stream_ = stream; }  // before the first call of the others

  void* allocate(int64_t bytes) override;
  void deallocate(void* address, int64_t bytes) override;
  int64_t alignment() const override { return kDeviceAlignment; }
  void fill(void* address, unsigned char value, int64_t bytes) override;
  bool holds(const void* address, unsigned char value, int64_t bytes) const override;

 private:
  CountedPool& pool_;
  Stream stream_ = 0;
  std::unordered_map<void*, void*> began_;  // where the driver's allocation of an address began
};

}  // namespace bimkern
