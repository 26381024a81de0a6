// Where an arena's memory comes from: injected, so that one arena serves the host, a device, and tests without memory.
#pragma once

#include <map>

#include "core/common.h"

namespace bimkern {

constexpr int64_t kHostAlignment = 64;     // what torch promises for tensors on the CPU
constexpr int64_t kDeviceAlignment = 512;  // what torch rounds device blocks to

class Upstream {
 public:
  virtual ~Upstream() = default;
  // Aligned to alignment(); nullptr, or an exception of its own, when there is no memory. bytes > 0.
  virtual void* allocate(int64_t bytes) = 0;
  virtual void deallocate(void* address, int64_t bytes) = 0;
  virtual int64_t alignment() const = 0;
  // The arena's debug mode poisons with fill() and looks for overruns with holds(), which says whether every byte is
  // `value`. Memory that the CPU cannot read answers true.
  virtual void fill(void* address, unsigned char value, int64_t bytes) = 0;
  virtual bool holds(const void* address, unsigned char value, int64_t bytes) const = 0;
};

class HostMemory : public Upstream {
 public:
  void* allocate(int64_t bytes) override;
  void deallocate(void* address, int64_t bytes) override;
  int64_t alignment() const override { return kHostAlignment; }
  void fill(void* address, unsigned char value, int64_t bytes) override;
  bool holds(const void* address, unsigned char value, int64_t bytes) const override;
};

// Addresses with nothing behind them, never given out twice. It knows what is live, and fails when told to.
class FakeMemory : public Upstream {
 public:
  explicit FakeMemory(int64_t alignment = kHostAlignment) : alignment_(alignment) {}

  void* allocate(int64_t bytes) override;
  void deallocate(void* address, int64_t bytes) override;
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
