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

template <typename A>
class PatchReader {
 public:
  explicit PatchReader(const Patches& patches)
      : patches_(patches),
        area_(patches.patch * patches.patch),
        pixel_bytes_(bytes_of(patches.dtype)),
        planes_(patches.length() * sizeof(double)),
        pixels_(patches.length() * sizeof(double)),
        offsets_(patches.channels * kTile),
        scales_(patches.channels * kTile),
        means_(patches.channels) {
    for (int64_t i = 0; i < patches.channels * kTile; ++i) {
      const Affine<A> affine = affine_of(i % patches.channels);
      offsets_[i] = affine.offset;
      scales_[i] = affine.scale;
    }
  }

  int64_t length() const { return patches_.length(); }

  // Asks for the pixels of a patch.
  BIMKERN_INLINE void prefetch(int64_t index) const {
    const char* corner = static_cast<const char*>(patches_.pixels) + corner_of(index) * pixel_bytes_;
    for (int64_t c = 0; c < patches_.channels; ++c) {
      prefetch_pixels(corner + c * patches_.channel_stride * pixel_bytes_, patches_.patch,
                      patches_.row_stride * pixel_bytes_, patches_.column_stride * pixel_bytes_);
    }
  }

  // The vector of a patch, [P]. The type of the pixels is chosen by the patch, or callers would be compiled for each.
  template <typename Set>
  BIMKERN_INLINE void read(Set set, int64_t index, A* out) {
    const int64_t corner = corner_of(index);
    if constexpr (std::is_same_v<A, float>) {
      switch (patches_.dtype) {
        case DType::kUInt8:
          return standardize_patch(set, cut<uint8_t>(corner), out);
        case DType::kFloat16:
          return standardize_patch(set, cut<float16>(corner), out);
        case DType::kBFloat16:
          return standardize_patch(set, cut<bfloat16>(corner), out);
        default:
          break;
      }
    }
    standardize_patch(set, pixel_bytes_ == sizeof(A) ? cut<A>(corner) : convert(corner), out);
  }

 private:
  static constexpr int64_t kTile = 16;  // pixels, so that the channels of a tile fill whole vectors

  // What a patch is standardized by: ((value - first) - mean) * scale.
  struct Statistics {
    A first;  // so that a constant patch is exactly zero, whatever its mean rounds to
    A mean;   // of value - first
    A scale;
  };

  Affine<A> affine_of(int64_t channel) const {
    const auto* mean = static_cast<const A*>(patches_.mean);
    const auto* std = static_cast<const A*>(patches_.std);
    return patches_.dtype == DType::kUInt8 ? normalization<uint8_t>(mean, std, channel)
                                           : normalization<A>(mean, std, channel);
  }

  int64_t corner_of(int64_t index) const {
    const int64_t per_image = patches_.rows * patches_.columns;
    const int64_t position = index % per_image;
    return index / per_image * patches_.image_stride +
           position / patches_.columns * patches_.patch * patches_.row_stride +
           position % patches_.columns * patches_.patch * patches_.column_stride;
  }

  template <typename Set, typename From>
  BIMKERN_INLINE void standardize_patch(Set set, const From* planes, A* out) {
    const From* pixels = interleave(planes);
    if constexpr (std::is_same_v<From, uint8_t>) {
      standardize(set, pixels, patches_.normalize ? byte_statistics(set, planes) : Statistics{0, 0, 1}, out);
    } else {
      standardize(set, pixels, Statistics{0, 0, 1}, out);
      if (patches_.normalize) {
        restandardize(statistics(out), out);
      }
    }
  }

  // [C, p*p]: the image rows of a patch are too short to fill vectors.
  template <typename From>
  BIMKERN_INLINE const From* cut(int64_t corner) {
    const From* from = static_cast<const From*>(patches_.pixels) + corner;
    From* planes = reinterpret_cast<From*>(planes_.data());
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

  // From [C, p*p] to [p*p, C], before values are widened: a vector holds four times as many bytes as floats.
  template <typename From>
  BIMKERN_INLINE const From* interleave(const From* __restrict planes) {
    const int64_t channels = patches_.channels, area = area_;
    From* __restrict pixels = reinterpret_cast<From*>(pixels_.data());
    if (channels == 3) {
      for (int64_t i = 0; i < area; ++i) {
        pixels[3 * i] = planes[i];
        pixels[3 * i + 1] = planes[area + i];
        pixels[3 * i + 2] = planes[2 * area + i];
      }
      return pixels;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < area; ++i) {
        pixels[i * channels + c] = planes[c * area + i];
      }
    }
    return pixels;
  }

  // Normalized, then standardized.
  template <typename Set, typename From>
  BIMKERN_INLINE void standardize(Set set, const From* __restrict pixels, Statistics by, A* __restrict out) const {
    const A* __restrict offsets = offsets_.data();
    const A* __restrict scales = scales_.data();
    const auto standard = [=](A pixel, int64_t k) BIMKERN_INLINE {
      return (((pixel - offsets[k]) * scales[k] - by.first) - by.mean) * by.scale;
    };
    const int64_t length = patches_.length(), tile = patches_.channels * kTile;
    int64_t done = 0;
    if (patches_.channels == 3) {
      constexpr int64_t kThree = 3 * kTile;
      for (; done + kThree <= length; done += kThree) {
        A raw[kThree];
        if constexpr (std::is_same_v<A, float> && sizeof(From) < sizeof(A)) {
          widen<kThree>(set, pixels + done, raw);
        } else {
          for (int64_t k = 0; k < kThree; ++k) {
            raw[k] = load_as<A>(pixels[done + k]);
          }
        }
        for (int64_t k = 0; k < kThree; ++k) {
          out[done + k] = standard(raw[k], k);
        }
      }
    }
    for (int64_t at = done; at < length; at += tile) {
      const int64_t count = std::min(tile, length - at);
      for (int64_t k = 0; k < count; ++k) {
        out[at + k] = standard(load_as<A>(pixels[at + k]), k);
      }
    }
  }

  BIMKERN_INLINE void restandardize(Statistics by, A* out) const {
    const int64_t length = patches_.length();
    for (int64_t i = 0; i < length; ++i) {
      out[i] = ((out[i] - by.first) - by.mean) * by.scale;
    }
  }

  BIMKERN_INLINE Statistics statistics(const A* values) const {
    const int64_t length = patches_.length();
    const A first = values[0];
    const A mean =
        lane_sum<A>(length, [=](int64_t i) BIMKERN_INLINE { return values[i] - first; }) / static_cast<A>(length);
    const A squares = lane_sum<A>(length, [=](int64_t i) BIMKERN_INLINE {
      const A centered = (values[i] - first) - mean;
      return centered * centered;
    });
    return {first, mean, scale_of(static_cast<double>(squares))};
  }

  // The same of bytes, [C, p*p], whose sums are exact: they tell a channel's mean and spread, and no value is needed.
  template <typename Set>
  BIMKERN_INLINE Statistics byte_statistics(Set set, const uint8_t* planes) {
    const int64_t channels = patches_.channels;
    const double count = static_cast<double>(area_), share = 1 / count;
    const A first = normalized(planes[0], Affine<A>{offsets_[0], scales_[0]});
    double total = 0, squares = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const uint8_t own = planes[c * area_];  // pixels less this one sum to exactly zero where a channel is constant
      const ByteSums sums = byte_sums(set, planes + c * area_, area_);
      const double scale = static_cast<double>(scales_[c]);
      const double apart = static_cast<double>(normalized(own, Affine<A>{offsets_[c], scales_[c]}) - first);
      means_[c] = apart + scale * ((sums.values - count * own) * share);
      total += means_[c];
      squares += scale * scale * ((count * sums.squares - sums.values * sums.values) * share);
    }
    const double mean = total / static_cast<double>(channels);
    for (int64_t c = 0; c < channels; ++c) {
      squares += count * (means_[c] - mean) * (means_[c] - mean);
    }
    return {first, static_cast<A>(mean), scale_of(squares)};
  }

  A scale_of(double squares) const {
    return static_cast<A>(1 / std::sqrt(squares / static_cast<double>(patches_.length() - 1) + kPatchEps));
  }

  const Patches& patches_;
  int64_t area_;
  int64_t pixel_bytes_;
  std::vector<char> planes_;  // [C, p*p] of any type
  std::vector<char> pixels_;  // [p*p, C] of any type
  std::vector<A> offsets_;    // of the elements of a tile
  std::vector<A> scales_;
  std::vector<double> means_;  // [C], of value - first
};

// The vectors of patches [begin, end), dense; asks for patch `next` in good time. Compiled once for float and double,
// in pixel_targets.cpp: inlined into every loop it was most of the build, and a call is short beside a patch.
template <typename A>
void read_patches(PatchReader<A>& reader, Simd simd, int64_t begin, int64_t end, int64_t next, A* out);

}  // namespace bimkern
