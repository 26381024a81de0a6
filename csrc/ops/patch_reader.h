// Reads patches of images as target vectors on the CPU, one at a time, into a buffer of the first-level cache. To be
// called inside of vectorised().
#pragma once

#include <cmath>
#include <vector>

#include "core/rows.h"
#include "ops/pixel_targets.h"
#include "ops/pixels.h"

namespace bimkern {

template <typename A>
class PatchReader {
 public:
  explicit PatchReader(const Patches& patches)
      : patches_(patches),
        area_(patches.patch * patches.patch),
        pixels_(area_ * sizeof(double)),
        planes_(patches.length()) {}

  // Asks for the pixels of a patch.
  void prefetch(int64_t index) const {
    dispatch_pixels(patches_.dtype, [&](auto pixel) { prefetch_as<decltype(pixel)>(index); });
  }

  // The vector of a patch, [P]. The type of the pixels is chosen by the patch, or callers would be compiled for each.
  template <typename Set>
  BIMKERN_INLINE void read(Set, int64_t index, A* out) {
    switch (patches_.dtype) {
      case DType::kUInt8:
        cut<uint8_t>(index);
        break;
      case DType::kFloat32:
        cut<float>(index);
        break;
      case DType::kFloat16:
        cut<float16>(index);
        break;
      case DType::kBFloat16:
        cut<bfloat16>(index);
        break;
      case DType::kFloat64:
        cut<double>(index);
        break;
    }
    interleave(patches_.normalize ? statistics() : Statistics{0, 0, 1}, out);
  }

 private:
  template <typename From>
  const From* corner_of(int64_t index) const {
    const int64_t per_image = patches_.rows * patches_.columns;
    const int64_t place = index % per_image;
    return static_cast<const From*>(patches_.pixels) + index / per_image * patches_.image_stride +
           place / patches_.columns * patches_.patch * patches_.row_stride +
           place % patches_.columns * patches_.patch * patches_.column_stride;
  }

  template <typename From>
  void prefetch_as(int64_t index) const {
    const From* corner = corner_of<From>(index);
    for (int64_t c = 0; c < patches_.channels; ++c) {
      prefetch_pixels(corner + c * patches_.channel_stride, patches_.patch, patches_.row_stride,
                      patches_.column_stride);
    }
  }

  // Channel by channel, laid out in one run: the image rows of a patch are too short to fill vectors.
  template <typename From>
  BIMKERN_INLINE void cut(int64_t index) {
    const From* corner = corner_of<From>(index);
    const auto* mean = static_cast<const A*>(patches_.mean);
    const auto* std = static_cast<const A*>(patches_.std);
    From* __restrict pixels = reinterpret_cast<From*>(pixels_.data());
    for (int64_t c = 0; c < patches_.channels; ++c) {
      cut_pixels(corner + c * patches_.channel_stride, patches_.patch, patches_.row_stride, patches_.column_stride,
                 pixels);
      const Affine<A> affine = normalisation<From>(mean, std, c);
      A* __restrict to = planes_.data() + c * area_;
      for (int64_t i = 0; i < area_; ++i) {
        to[i] = normalised(pixels[i], affine);
      }
    }
  }

  // What a patch is standardised by: ((value - first) - mean) * scale.
  struct Statistics {
    A first;  // so that a constant patch is exactly zero, whatever its mean rounds to
    A mean;   // of value - first
    A scale;
  };

  BIMKERN_INLINE Statistics statistics() const {
    const int64_t length = patches_.length();
    const A* values = planes_.data();
    const A first = values[0];
    const A mean =
        lane_sum<A>(length, [=](int64_t i) BIMKERN_INLINE { return values[i] - first; }) / static_cast<A>(length);
    const A squares = lane_sum<A>(length, [=](int64_t i) BIMKERN_INLINE {
      const A centred = (values[i] - first) - mean;
      return centred * centred;
    });
    const double variance = static_cast<double>(squares) / static_cast<double>(length - 1);
    return {first, mean, static_cast<A>(1 / std::sqrt(variance + kPatchEps))};
  }

  // Standardised, and from [C, p*p] to [p*p, C].
  BIMKERN_INLINE void interleave(Statistics by, A* __restrict out) const {
    const int64_t channels = patches_.channels;
    const A* __restrict planes = planes_.data();
    const auto standard = [=](int64_t i) BIMKERN_INLINE { return ((planes[i] - by.first) - by.mean) * by.scale; };
    if (channels == 3) {
      for (int64_t i = 0; i < area_; ++i) {
        out[3 * i] = standard(i);
        out[3 * i + 1] = standard(area_ + i);
        out[3 * i + 2] = standard(2 * area_ + i);
      }
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < area_; ++i) {
        out[i * channels + c] = standard(c * area_ + i);
      }
    }
  }

  const Patches& patches_;
  int64_t area_;
  std::vector<char> pixels_;  // of one channel, [p*p] of any type
  std::vector<A> planes_;     // [C, p*p]
};

}  // namespace bimkern
