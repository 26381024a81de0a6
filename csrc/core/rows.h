// What the CPU kernels do to one row, to be called inside of vectorized(). D is contiguous everywhere.
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

// What short rows are covered by, and tails.
constexpr int kPacket = 32;

// Calls packet(d) for packets [d, d + kPacket) that cover a row, the last of which may overlap the one before, or
// single(d) where the row is too short for one. What is written must not be what is read.
template <typename Packet, typename Single>
BIMKERN_INLINE inline void cover_row(int64_t width, const Packet& packet, const Single& single) {
  if (width < kPacket) {
    for (int64_t d = 0; d < width; ++d) {
      single(d);
    }
    return;
  }
  for (int64_t d = 0; d + kPacket <= width; d += kPacket) {
    packet(d);
  }
  if (width % kPacket != 0) {
    packet(width - kPacket);
  }
}

// A value of any type as A, and back.
template <typename A, typename T>
BIMKERN_INLINE inline A load_as(T value) {
  return static_cast<A>(Arithmetic<T>::load(value));
}

template <typename T, typename A>
BIMKERN_INLINE inline T store_as(A value) {
  return Arithmetic<T>::store(static_cast<typename Arithmetic<T>::type>(value));
}

// A row of a type that does not compute in A, which is rare: compiled for no instruction set.
template <typename A>
void convert_row(DType dtype, const void* rows, int64_t at, int64_t width, A* out) {
  dispatch(dtype, [&](auto type) {
    const auto* row = static_cast<const decltype(type)*>(rows) + at;
    for (int64_t d = 0; d < width; ++d) {
      out[d] = load_as<A>(row[d]);
    }
  });
}

template <typename A>
void convert_row_back(const A* row, int64_t width, DType dtype, void* rows, int64_t at) {
  dispatch(dtype, [&](auto type) {
    auto* out = static_cast<decltype(type)*>(rows) + at;
    for (int64_t d = 0; d < width; ++d) {
      out[d] = store_as<decltype(type)>(row[d]);
    }
  });
}

// A packet of any type as A, and back.
template <int kCount = kPacket, typename Set, typename T, typename A>
BIMKERN_INLINE inline void load_packet(Set set, const T* from, A* to) {
  if constexpr (kIsNarrow<T> && std::is_same_v<A, float>) {
    widen<kCount>(set, from, to);
  } else if constexpr (std::is_same_v<T, A>) {
    std::memcpy(to, from, kCount * sizeof(A));  // a loop would ask of every element whether the two overlap
  } else {
    for (int i = 0; i < kCount; ++i) {
      to[i] = load_as<A>(from[i]);
    }
  }
}

// The packet itself, or scratch, into which it is loaded: a copy of what has its type already is not optimized away.
template <typename Set, typename T, typename A>
BIMKERN_INLINE inline const A* as_packet(Set set, const T* from, A* scratch) {
  if constexpr (std::is_same_v<T, A>) {
    return from;
  } else {
    load_packet(set, from, scratch);
    return scratch;
  }
}

template <typename Set, typename A, typename T>
BIMKERN_INLINE inline void store_packet(Set set, const A* from, T* to) {
  if constexpr (kIsNarrow<T> && std::is_same_v<A, float>) {
    narrow<kPacket>(set, from, to);
  } else if constexpr (std::is_same_v<T, A>) {
    std::memcpy(to, from, kPacket * sizeof(A));
  } else {
    for (int i = 0; i < kPacket; ++i) {
      to[i] = store_as<T>(from[i]);
    }
  }
}

// out = sum, rounded to T.
template <typename Set, typename T>
BIMKERN_INLINE inline void store_row(Set set, const typename Arithmetic<T>::type* sum, int64_t width, T* out) {
  cover_row(
      width, [=](int64_t d) BIMKERN_INLINE { store_packet(set, sum + d, out + d); },
      [=](int64_t d) BIMKERN_INLINE { out[d] = Arithmetic<T>::store(sum[d]); });
}

// Whether the arithmetic of dtype is A's.
template <typename A>
bool computes_in(DType dtype) {
  return std::is_same_v<A, double> ? dtype == DType::kFloat64 : dtype != DType::kFloat64 && dtype != DType::kUInt8;
}

// Calls f with rows + at as a pointer to dtype if that computes in A, else to A. To be called for each row: chosen by a
// kernel as a whole, a type would have all of that compiled once more.
template <typename A, typename Void, typename F>
BIMKERN_INLINE inline void visit_row(DType dtype, Void* rows, int64_t at, const F& f) {
  const auto as = [=](auto type) BIMKERN_INLINE {
    using T = std::conditional_t<std::is_const_v<Void>, const decltype(type), decltype(type)>;
    return static_cast<T*>(rows) + at;
  };
  if constexpr (std::is_same_v<A, double>) {
    return f(as(double{}));
  } else if (dtype == DType::kFloat16) {
    return f(as(float16{}));
  } else if (dtype == DType::kBFloat16) {
    return f(as(bfloat16{}));
  } else {
    return f(as(float{}));
  }
}

template <typename Set, typename A>
BIMKERN_INLINE inline void load_row(Set set, DType dtype, const void* rows, int64_t at, int64_t width, A* out) {
  visit_row<A>(dtype, rows, at, [=](const auto* row) BIMKERN_INLINE { load_row(set, row, width, out); });
}

template <typename Set, typename A>
BIMKERN_INLINE inline void store_row(Set set, const A* sum, int64_t width, DType dtype, void* rows, int64_t at) {
  visit_row<A>(dtype, rows, at, [=](auto* row) BIMKERN_INLINE { store_row(set, sum, width, row); });
}

// out = row, in the type of out.
template <typename Set, typename T, typename A>
BIMKERN_INLINE inline void widen_row(Set set, const T* row, int64_t width, A* out) {
  cover_row(
      width, [=](int64_t d) BIMKERN_INLINE { load_packet(set, row + d, out + d); },
      [=](int64_t d) BIMKERN_INLINE { out[d] = load_as<A>(row[d]); });
}

template <typename Set, typename A>
BIMKERN_INLINE inline void widen_row(Set set, DType dtype, const void* rows, int64_t at, int64_t width, A* out) {
  if (!computes_in<A>(dtype)) {
    return convert_row(dtype, rows, at, width, out);
  }
  visit_row<A>(dtype, rows, at, [=](const auto* row) BIMKERN_INLINE { widen_row(set, row, width, out); });
}

// Lanes of a sum that is the same on every instruction set: which lane an element goes to depends on the count alone.
constexpr int kLanes = kPacket;

// The sum of count values: packet(i, values) gives those of [i, i + kLanes), single(i) one. Both are BIMKERN_INLINE,
// and capture by value, or their pointers are read again and again.
template <typename A, typename Packet, typename Single>
BIMKERN_INLINE inline A lane_sum(int64_t count, const Packet packet, const Single single) {
  A lanes[kLanes] = {};
  A values[kLanes];
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    packet(i, values);
    for (int j = 0; j < kLanes; ++j) {
      lanes[j] += values[j];
    }
  }
  if (whole == 0) {
    for (int64_t i = 0; i < count; ++i) {
      lanes[i] = single(i);
    }
  } else if (whole < count) {  // the last kLanes once more, but for those that were added: whole vectors again
    const int seen = static_cast<int>(whole + kLanes - count);
    packet(count - kLanes, values);
    for (int j = 0; j < kLanes; ++j) {
      lanes[j] += j < seen ? A{0} : values[j];
    }
  }
#pragma GCC unroll 5
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) {
      lanes[j] += lanes[j + half];
    }
  }
  return lanes[0];
}

// The same of f(i), of which the compiler makes packets.
template <typename A, typename F>
BIMKERN_INLINE inline A lane_sum(int64_t count, const F f) {
  const auto packet = [=](int64_t i, A* values) BIMKERN_INLINE {
    for (int j = 0; j < kLanes; ++j) {
      values[j] = f(i + j);
    }
  };
  return lane_sum<A>(count, packet, f);
}

}  // namespace bimkern
