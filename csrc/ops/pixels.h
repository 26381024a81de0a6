// How ops read pixels: the affine normalization of a channel, the same on every device, and on the CPU the cut of a
// patch. p is the patch size, C the number of channels. Strides count elements.
#pragma once

#include <cstring>
#include <type_traits>

#include "core/dtype.h"
#include "core/simd.h"

namespace bimkern {

// What patches are normalized in: float32, or float64 on the way to a product in float64.
template <typename T>
using Normal = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Takes pixels to (pixel - mean) / std, with bytes counting as 0 to 1, by one subtraction and one product per pixel.
// That is as exact as dividing twice, which takes longer than all else, and the same on every device.
template <typename A>
struct Affine {
  A offset;
  A scale;
};

// a * b, rounded before anything is added to it.
BIMKERN_HD float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

BIMKERN_HD double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// mean and std of the channels, null: 0 and 1.
template <typename From, typename A>
BIMKERN_HD Affine<A> normalization(const A* mean, const A* std, int64_t channel) {
  const A full = std::is_same_v<From, uint8_t> ? A{255} : A{1};
  return Affine<A>{mean == nullptr ? A{0} : rounded_product(full, mean[channel]),
                   A{1} / (std == nullptr ? full : rounded_product(full, std[channel]))};
}

template <typename From, typename A>
BIMKERN_HD A normalized(From pixel, Affine<A> affine) {
  return (static_cast<A>(Arithmetic<From>::load(pixel)) - affine.offset) * affine.scale;
}

// Copies bytes >= kChunk in chunks of a size that the compiler knows, the last of which may overlap the one before: a
// call of memcpy costs more than such a copy of a short row.
template <size_t kChunk>
BIMKERN_INLINE inline void copy_chunks(const char* from, size_t bytes, char* to) {
  for (size_t at = 0; at + kChunk < bytes; at += kChunk) {
    std::memcpy(to + at, from + at, kChunk);
  }
  std::memcpy(to + bytes - kChunk, from + bytes - kChunk, kChunk);
}

// Asks for one channel of a patch. Its image rows are short and far apart, so the machine does not foresee them. They
// go to the second-level cache: on the way to the first, so many at once hold up what is being computed. To be inlined
// all the way: GCC drops a call of a function that does nothing but prefetch.
BIMKERN_INLINE inline void prefetch_pixels(const char* corner, int64_t patch, int64_t row_bytes, int64_t column_bytes) {
  const int64_t last = (patch - 1) * column_bytes;
  for (int64_t y = 0; y < patch; ++y, corner += row_bytes) {
    __builtin_prefetch(corner, 0, 2);
    __builtin_prefetch(corner + last, 0, 2);
  }
}

// The p x p pixels of one channel of a patch, one after the other.
template <typename From>
BIMKERN_INLINE inline void cut_pixels(const From* corner, int64_t patch, int64_t row_stride, int64_t column_stride,
                                      From* pixels) {
  const size_t bytes = patch * sizeof(From);
  const auto copy_lines = [=](const auto& copy) BIMKERN_INLINE {
    for (int64_t y = 0; y < patch; ++y) {
      copy(reinterpret_cast<const char*>(corner + y * row_stride), reinterpret_cast<char*>(pixels + y * patch));
    }
  };
  if (column_stride == 1 && bytes == 16) {
    return copy_lines([](const char* from, char* to) BIMKERN_INLINE { std::memcpy(to, from, 16); });
  }
  if (column_stride == 1 && bytes > 16) {
    return copy_lines([=](const char* from, char* to) BIMKERN_INLINE { copy_chunks<16>(from, bytes, to); });
  }
  if (column_stride == 1 && bytes >= 8) {
    return copy_lines([=](const char* from, char* to) BIMKERN_INLINE { copy_chunks<8>(from, bytes, to); });
  }
  for (int64_t y = 0; y < patch; ++y) {
    for (int64_t x = 0; x < patch; ++x) {
      pixels[y * patch + x] = corner[y * row_stride + x * column_stride];
    }
  }
}

// The same of pixels of a type that does not compute in A, as A, which is rare: compiled for no instruction set.
template <typename A>
void convert_pixels(DType dtype, const void* images, int64_t at, int64_t patch, int64_t row_stride,
                    int64_t column_stride, A* pixels) {
  dispatch_pixels(dtype, [&](auto type) {
    const auto* corner = static_cast<const decltype(type)*>(images) + at;
    for (int64_t y = 0; y < patch; ++y) {
      for (int64_t x = 0; x < patch; ++x) {
        pixels[y * patch + x] =
            static_cast<A>(Arithmetic<decltype(type)>::load(corner[y * row_stride + x * column_stride]));
      }
    }
  });
}

}  // namespace bimkern
