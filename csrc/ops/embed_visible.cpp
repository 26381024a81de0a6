// CPU kernels of embed_visible.h, parallel over rows of the result, each of which is written once.
//
// visible_patches: reads the kept patches and nothing else. A channel of a patch is first laid out in a buffer of the
// first-level cache, then normalized in one loop: its image rows are too short to fill vectors, p = 16 bytes each.
// add_embeddings: reads the product, writes the tokens. Bias and positions stay in the caches.
#include "ops/embed_visible.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/rows.h"

namespace bimkern {
namespace {

// One channel of a patch, normalized, to out + at.
template <typename Set, typename From, typename A>
BIMKERN_INLINE inline void normalize_pixels(Set set, const From* pixels, int64_t count, Affine<A> affine, A* scratch,
                                            DType dtype, void* out, int64_t at) {
  const bool is_narrow = bytes_of(dtype) < static_cast<int64_t>(sizeof(A));
  A* wide = is_narrow ? scratch : static_cast<A*>(out) + at;
  for (int64_t i = 0; i < count; ++i) {
    wide[i] = normalized(pixels[i], affine);
  }
  if (is_narrow) {
    store_row(set, wide, count, dtype, out, at);
  }
}

// Pixels that do not compute in A are converted first, and From is A.
template <typename From, typename A>
void cut_patches(const VisiblePatches& args, const Parallel& parallel, Simd simd) {
  const TokenSizes size = args.size;
  const int64_t patch = args.patch;
  const int64_t area = patch * patch;
  const int64_t pixel_bytes = bytes_of(args.image_dtype);
  const bool in_place = !std::is_same_v<From, A> || pixel_bytes == sizeof(A);
  const auto* mean = static_cast<const A*>(args.mean);
  const auto* std = static_cast<const A*>(args.std);
  const int64_t row_bytes = size.width * bytes_of(args.dtype);
  const auto corner_of = [&](int64_t row) {
    const int64_t image = row / size.kept;
    const int64_t id = args.keep.ids[image * args.keep.image_stride + row % size.kept * args.keep.token_stride];
    return image * args.image_stride + id / args.columns * patch * args.row_stride +
           id % args.columns * patch * args.column_stride;
  };
  const auto affine_of = [&](int64_t channel) {
    return args.image_dtype == DType::kUInt8 ? normalization<uint8_t>(mean, std, channel)
                                             : normalization<A>(mean, std, channel);
  };
  parallel(size.images * size.kept, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    std::vector<From> pixels(area);
    std::vector<A> wide(bytes_of(args.dtype) < static_cast<int64_t>(sizeof(A)) ? area : 0);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t corner = corner_of(i), next = corner_of(std::min(i + 1, end - 1));
        for (int64_t c = 0; c < size.width / area; ++c) {
          const int64_t at = corner + c * args.channel_stride;
          prefetch_pixels(static_cast<const char*>(args.images) + (next + c * args.channel_stride) * pixel_bytes, patch,
                          args.row_stride * pixel_bytes, args.column_stride * pixel_bytes);
          if (in_place) {
            cut_pixels(static_cast<const From*>(args.images) + at, patch, args.row_stride, args.column_stride,
                       pixels.data());
          } else if constexpr (std::is_same_v<From, A>) {
            convert_pixels(args.image_dtype, args.images, at, patch, args.row_stride, args.column_stride,
                           pixels.data());
          }
          normalize_pixels(set, pixels.data(), area, affine_of(c), wide.data(), args.dtype, args.out,
                           i * size.width + c * area);
        }
      }
    });
  });
}

template <typename A>
void add_rows(const AddEmbeddings& args, const Parallel& parallel, Simd simd) {
  const TokenSizes size = args.size;
  const int64_t rows = size.prefix + size.kept;  // per image
  const auto* bias = static_cast<const A*>(args.bias);
  const auto* pos = static_cast<const A*>(args.pos);
  const auto* prefix = static_cast<const A*>(args.prefix);
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(A));
  parallel(size.images * rows, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / rows;
        const int64_t position = i % rows - size.prefix;  // negative: a prefix row
        A* out = static_cast<A*>(args.out) + i * size.width;
        if (position < 0) {
          std::memcpy(out, prefix + i % rows * args.prefix_token_stride, row_bytes);
          continue;
        }
        widen_row(set, args.product_dtype, args.product, (image * size.kept + position) * size.width, size.width, out);
        if (pos == nullptr) {
          add_row(set, out, bias, size.width, out);
          continue;
        }
        const int64_t id = args.keep.ids[image * args.keep.image_stride + position * args.keep.token_stride];
        const A* pos_row = pos + id * args.pos_token_stride;
        for (int64_t d = 0; d < size.width; ++d) {
          out[d] = out[d] + bias[d] + pos_row[d];
        }
      }
    });
  });
}

}  // namespace

void visible_patches(const VisiblePatches& args, const Parallel& parallel, Simd simd) {
  check_keep("embed_visible", args.keep, args.size);
  if (args.size.width > 0) {
    if (args.dtype == DType::kFloat64) {
      return cut_patches<double, double>(args, parallel, simd);
    }
    dispatch_pixels(args.image_dtype == DType::kFloat64 ? DType::kFloat32 : args.image_dtype,
                    [&](auto pixel) { cut_patches<decltype(pixel), float>(args, parallel, simd); });
  }
}

void add_embeddings(const AddEmbeddings& args, const Parallel& parallel, Simd simd) {
  if (args.pos != nullptr) {
    check_keep("embed_visible", args.keep, args.size);
  }
  if (args.size.width > 0) {
    dispatch_wide(args.dtype, [&](auto wide) { add_rows<decltype(wide)>(args, parallel, simd); });
  }
}

}  // namespace bimkern
