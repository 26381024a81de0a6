// CPU kernel of scale_mask.h, bound by memory: reads the mask and writes the result once.
//
// Parallel over rows of squares. The first row of a result is computed, the others that repeat it are copied from
// there.
#include "ops/scale_mask.h"

#include <algorithm>
#include <cstring>

namespace bimkern {
namespace {

template <typename T>
void scale_rows(const ScaleMask& args, const Parallel& parallel) {
  const int64_t rows = args.rows / args.average;  // of squares, in an image
  const int64_t columns = args.columns / args.average;
  const int64_t width = columns * args.repeat;
  const int64_t band_bytes = args.repeat * width * static_cast<int64_t>(sizeof(T));
  parallel(args.images * rows, grain_rows(band_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i % rows * args.average * args.columns;
      const T* mask = static_cast<const T*>(args.mask) + i / rows * args.image_stride + token * args.token_stride;
      T* out = static_cast<T*>(args.out) + i * args.repeat * width;
      for (int64_t column = 0; column < columns; ++column) {
        const T value = mean_of_square(mask + column * args.average * args.token_stride, args);
        std::fill_n(out + column * args.repeat, args.repeat, value);
      }
      for (int64_t copy = 1; copy < args.repeat; ++copy) {
        std::memcpy(out + copy * width, out, width * sizeof(T));
      }
    }
  });
}

}  // namespace

void scale_mask(const ScaleMask& args, const Parallel& parallel) {
  if (args.columns > 0) {
    dispatch(args.dtype, [&](auto type) { scale_rows<decltype(type)>(args, parallel); });
  }
}

}  // namespace bimkern
