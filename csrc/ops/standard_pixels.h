// Lays the planes of a patch out as pixels, channel fastest, every value standardized on the way, on every instruction
// set of simd.h and to the same bits. To be called inside of vectorized().
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/convert.h"

namespace bimkern {

// What takes the pixels of a channel to standard values: (pixel - shift) * scale + offset.
template <typename A>
struct Standard {
  A shift;
  A scale;
  A offset;
};

template <typename From, typename A>
BIMKERN_INLINE inline A standardized(From pixel, Standard<A> by) {
  return (static_cast<A>(pixel) - by.shift) * by.scale + by.offset;
}

// out[i * C + c] = planes[c * area + i], standardized by by[c].
template <typename From, typename A>
BIMKERN_INLINE inline void standard_pixels_singly(const From* planes, int64_t area, int64_t channels,
                                                  const Standard<A>* by, A* __restrict out) {
  for (int64_t c = 0; c < channels; ++c) {
    const Standard<A> own = by[c];
    for (int64_t i = 0; i < area; ++i) {
      out[i * channels + c] = standardized(planes[c * area + i], own);
    }
  }
}

#if BIMKERN_X86
// Where the lanes of the result's registers come from, of three planes of kLanes pixels: lane l of register j has pixel
// (3 * i + c = j * kLanes + l) i of plane c.
template <int kLanes>
struct ThreePlanes {
  int pixel[3][kLanes];
  int of_two[3][kLanes];      // the same where the first plane and the second lie side by side
  int with_third[3][kLanes];  // the lane itself, or where it comes from the third plane, kLanes + its pixel

  constexpr ThreePlanes() : pixel{}, of_two{}, with_third{} {
    for (int at = 0; at < 3 * kLanes; ++at) {
      const int j = at / kLanes, l = at % kLanes;
      pixel[j][l] = at / 3;
      of_two[j][l] = at / 3 + (at % 3 == 1 ? kLanes : 0);
      with_third[j][l] = at % 3 == 2 ? kLanes + at / 3 : l;
    }
  }
};
constexpr ThreePlanes<8> kThreePlanes8;
constexpr ThreePlanes<16> kThreePlanes16;

BIMKERN_AVX2 inline __m256 eight_pixels(const uint8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
BIMKERN_AVX2 inline __m256 eight_pixels(const float* from) { return _mm256_loadu_ps(from); }

BIMKERN_AVX512 inline __m512 sixteen_pixels(const uint8_t* from) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_maskz_cvtepi32_ps(kAll, _mm512_maskz_cvtepu8_epi32(kAll, bytes));
}
BIMKERN_AVX512 inline __m512 sixteen_pixels(const float* from) { return _mm512_loadu_ps(from); }

// The register whose first lane comes from plane kFirst, the next lane from the one after it, and so on.
template <int kFirst>
BIMKERN_AVX2 inline __m256 blend_three(__m256 first, __m256 second, __m256 third) {
  constexpr int kOfSecond = kFirst == 0 ? 0x92 : kFirst == 1 ? 0x49 : 0x24;
  constexpr int kOfThird = kFirst == 0 ? 0x24 : kFirst == 1 ? 0x92 : 0x49;
  return _mm256_blend_ps(_mm256_blend_ps(first, second, kOfSecond), third, kOfThird);
}

// area >= 8. The last block of pixels may overlap the one before.
template <typename From>
BIMKERN_AVX2 inline void three_planes(SimdTag<Simd::kAvx2>, const From* planes, int64_t area, const Standard<float>* by,
                                      float* out) {
  for (int64_t begin = 0; begin < area; begin += 8) {
    const int64_t i = std::min(begin, area - 8);
    __m256 plane[3];
    for (int c = 0; c < 3; ++c) {
      plane[c] = _mm256_sub_ps(eight_pixels(planes + c * area + i), _mm256_set1_ps(by[c].shift));
      plane[c] = _mm256_add_ps(_mm256_mul_ps(plane[c], _mm256_set1_ps(by[c].scale)), _mm256_set1_ps(by[c].offset));
    }
    __m256 spread[3][3];
    for (int j = 0; j < 3; ++j) {
      const __m256i pixel = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kThreePlanes8.pixel[j]));
      for (int c = 0; c < 3; ++c) {
        spread[j][c] = _mm256_permutevar8x32_ps(plane[c], pixel);
      }
    }
    _mm256_storeu_ps(out + 3 * i, blend_three<0>(spread[0][0], spread[0][1], spread[0][2]));
    _mm256_storeu_ps(out + 3 * i + 8, blend_three<2>(spread[1][0], spread[1][1], spread[1][2]));
    _mm256_storeu_ps(out + 3 * i + 16, blend_three<1>(spread[2][0], spread[2][1], spread[2][2]));
  }
}

// area >= 16.
template <typename From>
BIMKERN_AVX512 inline void three_planes(SimdTag<Simd::kAvx512>, const From* planes, int64_t area,
                                        const Standard<float>* by, float* out) {
  __m512 shift[3], scale[3], offset[3];
  __m512i of_two[3], with_third[3];
  for (int j = 0; j < 3; ++j) {
    shift[j] = _mm512_set1_ps(by[j].shift);
    scale[j] = _mm512_set1_ps(by[j].scale);
    offset[j] = _mm512_set1_ps(by[j].offset);
    of_two[j] = _mm512_loadu_si512(kThreePlanes16.of_two[j]);
    with_third[j] = _mm512_loadu_si512(kThreePlanes16.with_third[j]);
  }
  for (int64_t begin = 0; begin < area; begin += 16) {
    const int64_t i = std::min(begin, area - 16);
    __m512 plane[3];
    for (int c = 0; c < 3; ++c) {
      plane[c] = _mm512_sub_ps(sixteen_pixels(planes + c * area + i), shift[c]);
      plane[c] = _mm512_add_ps(_mm512_mul_ps(plane[c], scale[c]), offset[c]);
    }
    for (int j = 0; j < 3; ++j) {
      const __m512 two = _mm512_permutex2var_ps(plane[0], of_two[j], plane[1]);
      _mm512_storeu_ps(out + 3 * i + 16 * j, _mm512_permutex2var_ps(two, with_third[j], plane[2]));
    }
  }
}
#endif

template <Simd kSimd, typename From, typename A>
BIMKERN_INLINE inline void standard_pixels(SimdTag<kSimd> set, const From* planes, int64_t area, int64_t channels,
                                           const Standard<A>* by, A* out) {
  if constexpr (kSimd != Simd::kBaseline && std::is_same_v<A, float>) {
    if (channels == 3 && area >= (kSimd == Simd::kAvx512 ? 16 : 8)) {
      return three_planes(set, planes, area, by, out);
    }
  }
  if (channels == 1) {  // a count that the compiler knows
    return standard_pixels_singly(planes, area, 1, by, out);
  }
  standard_pixels_singly(planes, area, channels, by, out);
}

}  // namespace bimkern
