// The native tests' one tool: count and print what does not hold, and continue.
#pragma once

#include <cstdio>

inline int& failures() {
  static int count = 0;
  return count;
}

#define EXPECT(condition)                                                  \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++failures();                                                        \
    }                                                                      \
  } while (false)
