// What a device arena asks of the device: its stream-ordered pool, and order between streams. Injected, so that the
// stream logic is tested without a device.
#pragma once

#include "core/common.h"

namespace bimkern {

using Stream = uint64_t;  // the driver's handle as a number, so that it can own an arena

class Driver {
 public:
  using Event = uint64_t;

  virtual ~Driver() = default;
  // From the pool, for what the stream is given from now on; nullptr when there is no memory. bytes > 0. Aligned to
  // kDriverAlignment.
  virtual void* allocate(int64_t bytes, Stream stream) = 0;
  // Back to the pool, behind what the stream was given so far.
  virtual void free(void* address, int64_t bytes, Stream stream) = 0;
  // A point behind all that a stream was given so far, and having another wait for it: once for every event.
  virtual Event record(Stream stream) = 0;
  virtual void wait(Stream stream, Event event) = 0;
  // For debug mode, in the order of the stream; holds() waits for it.
  virtual void fill(void* address, unsigned char value, int64_t bytes, Stream stream) = 0;
  virtual bool holds(const void* address, unsigned char value, int64_t bytes, Stream stream) = 0;
};

constexpr int64_t kDriverAlignment = 256;  // what CUDA promises for every allocation

}  // namespace bimkern
