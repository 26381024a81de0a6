// What the CPU kernels do to one row, to be called inside of vectorised(). D is contiguous everywhere.
#pragma once

#include <cstring>
#include <type_traits>

#include "core/convert.h"

namespace bimkern {

template <typename T>
constexpr bool kIsNarrow = !std::is_same_v<T, typename Arithmetic<T>::type>;

// Elements that are converted in whole packets; the rest of the row goes one by one.
template <typename T>
constexpr int64_t converted_part(int64_t width) {
  return kIsNarrow<T> ? width / kConverted * kConverted : 0;
}

// out = row, in the type of its arithmetic.
template <typename Set, typename T>
BIMKERN_INLINE inline void load_row(Set set, const T* row, int64_t width, typename Arithmetic<T>::type* out) {
  const int64_t packets = converted_part<T>(width);
  if constexpr (kIsNarrow<T>) {
    for (int64_t d = 0; d < packets; d += kConverted) {
      widen(set, row + d, out + d);
    }
  }
  for (int64_t d = packets; d < width; ++d) {
    out[d] = Arithmetic<T>::load(row[d]);
  }
}

// out = a + b, rounded once.
template <typename Set, typename T>
BIMKERN_INLINE inline void add_row(Set set, const T* a, const T* b, int64_t width, T* out) {
  using A = Arithmetic<T>;
  const int64_t packets = converted_part<T>(width);
  if constexpr (kIsNarrow<T>) {
    for (int64_t d = 0; d < packets; d += kConverted) {
      float left[kConverted], right[kConverted];
      widen(set, a + d, left);
      widen(set, b + d, right);
      for (int i = 0; i < kConverted; ++i) {
        left[i] += right[i];
      }
      narrow(set, left, out + d);
    }
  }
  for (int64_t d = packets; d < width; ++d) {
    out[d] = A::store(A::load(a[d]) + A::load(b[d]));
  }
}

// sum += row.
template <typename Set, typename T>
BIMKERN_INLINE inline void accumulate_row(Set set, const T* row, int64_t width, typename Arithmetic<T>::type* sum) {
  const int64_t packets = converted_part<T>(width);
  if constexpr (kIsNarrow<T>) {
    for (int64_t d = 0; d < packets; d += kConverted) {
      float wide[kConverted];
      widen(set, row + d, wide);
      for (int i = 0; i < kConverted; ++i) {
        sum[d + i] += wide[i];
      }
    }
  }
  for (int64_t d = packets; d < width; ++d) {
    sum[d] += Arithmetic<T>::load(row[d]);
  }
}

// sum += row and out = row. Out of memory, one pass is faster than memcpy and then a sum.
template <typename Set, typename T>
BIMKERN_INLINE inline void accumulate_and_copy_row(Set set, const T* row, int64_t width,
                                                   typename Arithmetic<T>::type* sum, T* out) {
  const int64_t packets = converted_part<T>(width);
  for (int64_t d = 0; d < packets; d += kConverted) {
    accumulate_row(set, row + d, kConverted, sum + d);
    std::memcpy(out + d, row + d, kConverted * sizeof(T));
  }
  for (int64_t d = packets; d < width; ++d) {
    sum[d] += Arithmetic<T>::load(row[d]);
    out[d] = row[d];
  }
}

// out = sum, rounded to T.
template <typename Set, typename T>
BIMKERN_INLINE inline void store_row(Set set, const typename Arithmetic<T>::type* sum, int64_t width, T* out) {
  const int64_t packets = converted_part<T>(width);
  if constexpr (kIsNarrow<T>) {
    for (int64_t d = 0; d < packets; d += kConverted) {
      narrow(set, sum + d, out + d);
    }
  }
  for (int64_t d = packets; d < width; ++d) {
    out[d] = Arithmetic<T>::store(sum[d]);
  }
}

// out = row, in the type of out.
template <typename Set, typename T, typename A>
BIMKERN_INLINE inline void widen_row(Set set, const T* row, int64_t width, A* out) {
  int64_t packets = 0;
  if constexpr (kIsNarrow<T> && std::is_same_v<A, float>) {
    packets = converted_part<T>(width);
    for (int64_t d = 0; d < packets; d += kConverted) {
      widen(set, row + d, out + d);
    }
  }
  for (int64_t d = packets; d < width; ++d) {
    out[d] = static_cast<A>(Arithmetic<T>::load(row[d]));
  }
}

// Lanes of a sum that is the same on every instruction set: element i goes to lane i % kLanes, lanes are added as a
// tree.
constexpr int kLanes = 32;

// The sum of f(i) over [0, count); f is BIMKERN_INLINE.
template <typename A, typename F>
BIMKERN_INLINE inline A lane_sum(int64_t count, const F& f) {
  A lanes[kLanes] = {};
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      lanes[j] += f(i + j);
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    lanes[i - whole] += f(i);
  }
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) {
      lanes[j] += lanes[j + half];
    }
  }
  return lanes[0];
}

}  // namespace bimkern
