// CPU kernel of scale_mask.h, bound by memory: reads the mask and writes the result once.
//
// Parallel over rows of squares. The first row of a result is computed, the others that repeat it are copied from
// there. The usual sides are known to the compiler, which then vectorizes the row.
#include "ops/scale_mask.h"

#include <cstring>
#include <type_traits>

namespace bimkern {
namespace {

template <int64_t kSide>
using Side = std::integral_constant<int64_t, kSide>;

template <typename T, typename Average, typename Repeat>
void scale_rows(const ScaleMask& args, const Parallel& parallel, Average average, Repeat repeat) {
  const int64_t rows = args.rows / average;  // of squares, in an image
  const int64_t columns = args.columns / average;
  const int64_t width = columns * repeat;
  const int64_t band_bytes = repeat * width * static_cast<int64_t>(sizeof(T));
  parallel(args.images * rows, grain_rows(band_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* mask =
          static_cast<const T*>(args.mask) + i / rows * args.image_stride + i % rows * average * args.columns;
      T* out = static_cast<T*>(args.out) + i * repeat * width;
      for (int64_t column = 0; column < columns; ++column) {
        const T value = mean_of_square(mask + column * average, args.columns, average);
        for (int64_t copy = 0; copy < repeat; ++copy) {
          out[column * repeat + copy] = value;
        }
      }
      for (int64_t copy = 1; copy < repeat; ++copy) {
        std::memcpy(out + copy * width, out, width * sizeof(T));
      }
    }
  });
}

template <typename T>
void scale(const ScaleMask& args, const Parallel& parallel) {
  if (args.average == 1 && args.repeat == 2) {
    scale_rows<T>(args, parallel, Side<1>{}, Side<2>{});
  } else if (args.average == 1 && args.repeat == 4) {
    scale_rows<T>(args, parallel, Side<1>{}, Side<4>{});
  } else if (args.average == 2 && args.repeat == 1) {
    scale_rows<T>(args, parallel, Side<2>{}, Side<1>{});
  } else {
    scale_rows<T>(args, parallel, args.average, args.repeat);
  }
}

}  // namespace

void scale_mask(const ScaleMask& args, const Parallel& parallel) {
  if (args.columns > 0) {
    dispatch(args.dtype, [&](auto type) { scale<decltype(type)>(args, parallel); });
  }
}

}  // namespace bimkern
