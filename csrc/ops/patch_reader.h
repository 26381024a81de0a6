// Reads patches of images as target vectors on the CPU, one at a time, into a buffer of the first-level cache. To be
// called inside of vectorized().
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "core/rows.h"
#include "ops/pixel_targets.h"
#include "ops/pixels.h"
#include "ops/standard_pixels.h"

namespace bimkern {

struct ByteSums {
  double values;
  double squares;
};

// Exact, so the same in any order.
template <Simd kSimd>
BIMKERN_INLINE inline ByteSums byte_sums(SimdTag<kSimd>, const uint8_t* bytes, int64_t count) {
  int64_t values = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    values += bytes[i];
    squares += bytes[i] * bytes[i];
  }
  return {static_cast<double>(values), static_cast<double>(squares)};
}

#if BIMKERN_X86
// The compiler would widen every byte to a word of four.
BIMKERN_AVX2 inline ByteSums byte_sums_avx2(const uint8_t* bytes, int64_t count) {
  constexpr int64_t kBlock = 1 << 17;  // the squares of as many bytes still fit the lanes
  const __m256i zero = _mm256_setzero_si256();
  const int64_t whole = count / 32 * 32;
  ByteSums sums = byte_sums(SimdTag<Simd::kBaseline>{}, bytes + whole, count - whole);
  for (int64_t begin = 0; begin < whole; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, whole);
    __m256i values = zero, squares = zero;
    for (int64_t i = begin; i < end; i += 32) {
      const __m256i packet = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + i));
      const __m256i low = _mm256_unpacklo_epi8(packet, zero), high = _mm256_unpackhi_epi8(packet, zero);
      values = _mm256_add_epi64(values, _mm256_sad_epu8(packet, zero));
      squares = _mm256_add_epi32(squares, _mm256_add_epi32(_mm256_madd_epi16(low, low), _mm256_madd_epi16(high, high)));
    }
    // From words to pairs of words, which add up without overflow.
    squares = _mm256_add_epi64(_mm256_srli_epi64(squares, 32), _mm256_blend_epi32(squares, zero, 0xaa));
    const __m256i both =
        _mm256_add_epi64(_mm256_unpacklo_epi64(values, squares), _mm256_unpackhi_epi64(values, squares));
    const __m128i total = _mm_add_epi64(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    sums.values += static_cast<double>(_mm_cvtsi128_si64(total));
    sums.squares += static_cast<double>(_mm_extract_epi64(total, 1));
  }
  return sums;
}

BIMKERN_AVX2 inline ByteSums byte_sums(SimdTag<Simd::kAvx2>, const uint8_t* bytes, int64_t count) {
  return byte_sums_avx2(bytes, count);
}

BIMKERN_AVX512 inline ByteSums byte_sums(SimdTag<Simd::kAvx512>, const uint8_t* bytes, int64_t count) {
  return byte_sums_avx2(bytes, count);
}
#endif

// Of the pixels of a channel, less the channel's first.
struct Spread {
  double mean;
  double squares;  // of what lies between a pixel and the mean, summed
};

template <typename Set>
BIMKERN_INLINE inline Spread spread_of(Set set, const uint8_t* plane, int64_t area) {
  const double count = static_cast<double>(area), share = 1 / count;
  const ByteSums sums = byte_sums(set, plane, area);
  return {(sums.values - count * plane[0]) * share, (count * sums.squares - sums.values * sums.values) * share};
}

template <typename Set, typename A>
BIMKERN_INLINE inline Spread spread_of(Set, const A* plane, int64_t area) {
  const A first = plane[0];
  const A mean = lane_sum<A>(area, [=](int64_t i) BIMKERN_INLINE { return plane[i] - first; }) / static_cast<A>(area);
  const A squares = lane_sum<A>(area, [=](int64_t i) BIMKERN_INLINE {
    const A centered = (plane[i] - first) - mean;
    return centered * centered;
  });
  return {static_cast<double>(mean), static_cast<double>(squares)};
}

template <typename A>
class PatchReader {
 public:
  explicit PatchReader(const Patches& patches)
      : patches_(patches),
        area_(patches.patch * patches.patch),
        pixel_bytes_(bytes_of(patches.dtype)),
        planes_(patches.length() * sizeof(double)),
        narrow_(pixel_bytes_ < static_cast<int64_t>(sizeof(A)) ? patches.length() * pixel_bytes_ : 0),
        standards_(patches.channels),
        means_(patches.channels) {
    for (int64_t c = 0; c < patches.channels; ++c) {
      const auto* mean = static_cast<const A*>(patches_.mean);
      const auto* std = static_cast<const A*>(patches_.std);
      affines_.push_back(patches_.dtype == DType::kUInt8 ? normalization<uint8_t>(mean, std, c)
                                                         : normalization<A>(mean, std, c));
    }
  }

  int64_t length() const { return patches_.length(); }

  // Asks for the pixels of a patch.
  BIMKERN_INLINE void prefetch(int64_t index) {
    asked_ = index;
    asked_corner_ = corner_of(index);
    const char* corner = static_cast<const char*>(patches_.pixels) + asked_corner_ * pixel_bytes_;
    for (int64_t c = 0; c < patches_.channels; ++c) {
      prefetch_pixels(corner + c * patches_.channel_stride * pixel_bytes_, patches_.patch,
                      patches_.row_stride * pixel_bytes_, patches_.column_stride * pixel_bytes_);
    }
  }

  // The vector of a patch, [P]. The type of the pixels is chosen by the patch, or callers would be compiled for each.
  template <typename Set>
  BIMKERN_INLINE void read(Set set, int64_t index, A* out) {
    const int64_t corner = index == asked_ ? asked_corner_ : corner_of(index);
    if constexpr (std::is_same_v<A, float>) {
      if (patches_.dtype == DType::kUInt8) {
        return standardize(set, cut<uint8_t>(corner, planes_.data()), out);
      }
      if (pixel_bytes_ == sizeof(uint16_t)) {
        const auto* pixels = cut<uint16_t>(corner, narrow_.data());
        auto* wide = reinterpret_cast<float*>(planes_.data());
        widen_row(set, patches_.dtype, pixels, 0, length(), wide);
        return standardize(set, static_cast<const float*>(wide), out);
      }
    }
    standardize(set, pixel_bytes_ == sizeof(A) ? cut<A>(corner, planes_.data()) : convert(corner), out);
  }

 private:
  int64_t corner_of(int64_t index) const {
    const int64_t per_image = patches_.rows * patches_.columns;
    const int64_t position = index % per_image;
    return index / per_image * patches_.image_stride +
           position / patches_.columns * patches_.patch * patches_.row_stride +
           position % patches_.columns * patches_.patch * patches_.column_stride;
  }

  // [C, p*p]: the image rows of a patch are too short to fill vectors.
  template <typename From>
  BIMKERN_INLINE const From* cut(int64_t corner, char* to) {
    const From* from = static_cast<const From*>(patches_.pixels) + corner;
    From* planes = reinterpret_cast<From*>(to);
    for (int64_t c = 0; c < patches_.channels; ++c) {
      cut_pixels(from + c * patches_.channel_stride, patches_.patch, patches_.row_stride, patches_.column_stride,
                 planes + c * area_);
    }
    return planes;
  }

  const A* convert(int64_t corner) {
    A* planes = reinterpret_cast<A*>(planes_.data());
    for (int64_t c = 0; c < patches_.channels; ++c) {
      convert_pixels(patches_.dtype, patches_.pixels, corner + c * patches_.channel_stride, patches_.patch,
                     patches_.row_stride, patches_.column_stride, planes + c * area_);
    }
    return planes;
  }

  template <typename Set, typename From>
  BIMKERN_INLINE void standardize(Set set, const From* planes, A* out) {
    if (patches_.normalize) {
      standardize_by(set, planes);
    } else {
      for (int64_t c = 0; c < patches_.channels; ++c) {
        standards_[c] = {affines_[c].offset, affines_[c].scale, A{0}};
      }
    }
    standard_pixels(set, planes, area_, patches_.channels, standards_.data(), out);
  }

  // From what channels spread over to zero mean and unit variance of the patch. Values are taken relative to the first
  // pixels of the patch and of its channels, so that a constant patch is exactly zero, whatever its mean rounds to.
  template <typename Set, typename From>
  BIMKERN_INLINE void standardize_by(Set set, const From* planes) {
    const int64_t channels = patches_.channels;
    const A first = normalized(planes[0], affines_[0]);
    double total = 0, squares = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const From* plane = planes + c * area_;
      const Spread spread = spread_of(set, plane, area_);
      const double scale = static_cast<double>(affines_[c].scale);
      const A apart = normalized(plane[0], affines_[c]) - first;
      standards_[c] = {static_cast<A>(plane[0]), affines_[c].scale, apart};
      means_[c] = static_cast<double>(apart) + scale * spread.mean;
      total += means_[c];
      squares += scale * scale * spread.squares;
    }
    const double mean = total / static_cast<double>(channels);
    for (int64_t c = 0; c < channels; ++c) {
      squares += static_cast<double>(area_) * (means_[c] - mean) * (means_[c] - mean);
    }
    const double scale = 1 / std::sqrt(squares / static_cast<double>(patches_.length() - 1) + kPatchEps);
    for (Standard<A>& standard : standards_) {
      standard.scale = static_cast<A>(scale * static_cast<double>(standard.scale));
      standard.offset = static_cast<A>(scale * (static_cast<double>(standard.offset) - mean));
    }
  }

  const Patches& patches_;
  int64_t area_;
  int64_t pixel_bytes_;
  int64_t asked_ = -1;  // the patch that was asked for last
  int64_t asked_corner_ = 0;
  std::vector<Affine<A>> affines_;      // [C]
  std::vector<char> planes_;            // [C, p*p], bytes or A
  std::vector<char> narrow_;            // [C, p*p] of a type of 16 bits
  std::vector<Standard<A>> standards_;  // [C]
  std::vector<double> means_;           // [C], of value - first
};

// The vectors of patches [begin, end), dense; asks for patch `next` in good time. Compiled once for float and double,
// in pixel_targets.cpp: inlined into every loop it was most of the build, and a call is short beside a patch.
template <typename A>
void read_patches(PatchReader<A>& reader, Simd simd, int64_t begin, int64_t end, int64_t next, A* out);

}  // namespace bimkern
