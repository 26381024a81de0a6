// Debug mode: freed memory is poisoned, and every allocation is followed by a canary that a write past its end
// overwrites.
#pragma once

#include "arena/upstream.h"

namespace bimkern {

constexpr unsigned char kPoison = 0xFF;  // NaN in every floating-point type, -1 in every integer
constexpr unsigned char kCanary = 0xA5;

class Guard {
 public:
  Guard(Upstream& upstream, bool on) : upstream_(upstream), on_(on) {}

  bool on() const { return on_; }
  int64_t padding() const { return on_ ? upstream_.alignment() : 0; }  // after every allocation

  void born(void* address, int64_t bytes) const {
    if (on_) {
      upstream_.fill(address, kPoison, bytes);
      upstream_.fill(static_cast<char*>(address) + bytes, kCanary, padding());
    }
  }

  // -> whether the canary is intact
  bool died(void* address, int64_t bytes) const {
    if (!on_) {
      return true;
    }
    const bool intact = upstream_.holds(static_cast<char*>(address) + bytes, kCanary, padding());
    upstream_.fill(address, kPoison, bytes);
    return intact;
  }

 private:
  Upstream& upstream_;
  bool on_;
};

}  // namespace bimkern
