// What can go wrong with an arena, as a type: callers and tests need not parse text.
#pragma once

#include "core/error.h"

namespace bimkern {

enum class Fault {
  kDoubleFree,          // an address that the arena owns, but that is free
  kForeignPointer,      // an address that the arena never gave out
  kWrongOwner,          // another thread (host) or stream (device) than the one that opened the first scope
  kScope,               // nested, crossed or closed twice
  kBadSize,             // an allocation of no bytes
  kNoMemory,            // the upstream had none
  kOverrun,             // debug mode: a write past the end of an allocation
  kUnsynchronizedFree,  // debug mode: freed on a stream that neither owns the allocation nor was recorded
  kBadPlan,             // a plan whose allocations could overlap, or that was made for another arena
};

// Debug mode reports what it finds when a scope closes; the scope is closed then.
inline bool reported_after_closing(Fault fault) {
  return fault == Fault::kOverrun || fault == Fault::kUnsynchronizedFree;
}

class ArenaError : public Error {
 public:
  ArenaError(Fault fault, const std::string& text) : Error("arena: " + text), fault_(fault) {}
  Fault fault() const { return fault_; }

 private:
  Fault fault_;
};

}  // namespace bimkern

#define BIMKERN_ARENA_CHECK(condition, fault, ...)                         \
  do {                                                                     \
    if (!(condition)) {                                                    \
      throw ::bimkern::ArenaError(fault, ::bimkern::message(__VA_ARGS__)); \
    }                                                                      \
  } while (false)
