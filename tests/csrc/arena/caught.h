// Which fault a call ends with, and its text.
#pragma once

#include <optional>
#include <string>

#include "arena/error.h"

namespace bimkern {

struct Caught {
  std::optional<Fault> fault;  // none: the call went through
  std::string text;
};

template <typename F>
Caught caught(const F& f) {
  try {
    f();
  } catch (const ArenaError& error) {
    return {error.fault(), error.what()};
  }
  return {};
}

}  // namespace bimkern
