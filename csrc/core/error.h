// The core's one exception, and the check that throws it. Every check has text: op, argument, expected, got.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace bimkern {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace bimkern

#define BIMKERN_CHECK(condition, ...)                          \
  do {                                                         \
    if (!(condition)) {                                        \
      throw ::bimkern::Error(::bimkern::message(__VA_ARGS__)); \
    }                                                          \
  } while (false)
