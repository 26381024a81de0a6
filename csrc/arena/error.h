// What can go wrong with an arena, as a type: callers and tests tell the kinds apart without reading text.
#pragma once

#include "core/error.h"

namespace bimkern {

enum class Fault {
  kDoubleFree,      // an address that the arena owns and that is free
  kForeignPointer,  // an address that the arena never gave out
  kWrongOwner,      // another thread (host) or stream (device) than the one that opened the first scope
  kScope,           // nested, crossed or closed twice
  kBadSize,         // an allocation of no bytes
  kNoMemory,        // the upstream had none
  kOverrun,         // debug mode: something wrote behind its block
  kHandOff,         // debug mode: a block was let go on a stream that was not recorded as its user
  kBadPlan,         // a plan whose blocks could overlap, or that was made for another arena
};

// What debug mode finds is told when a scope closes, and the scope is closed then.
inline bool told_after_closing(Fault fault) { return fault == Fault::kOverrun || fault == Fault::kHandOff; }

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
