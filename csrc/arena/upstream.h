// Where an arena's memory comes from: injected, so that one arena serves the host, a device and tests.
#pragma once

#include "core/common.h"

namespace bimkern {

constexpr int64_t kHostAlignment = 64;     // what torch promises for tensors on the CPU
constexpr int64_t kDeviceAlignment = 512;  // what torch rounds device allocations to

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

}  // namespace bimkern
