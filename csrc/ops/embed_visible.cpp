// CPU kernels of embed_visible.h, parallel over rows of the result, each of which is written once.
//
// visible_patches: reads the kept patches and nothing else. A channel of a patch is first laid out in a buffer of the
// first-level cache, then normalised in one loop: its image rows are too short to fill vectors, p = 16 bytes each.
// add_embeddings: reads the product, writes the tokens. Bias and positions stay in the caches.
#include "ops/embed_visible.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/rows.h"

namespace bimkern {
namespace {

template <typename Set, typename From, typename T>
BIMKERN_INLINE inline void normalise_pixels(Set set, const From* pixels, int64_t count, Affine<Normal<T>> affine,
                                            Normal<T>* scratch, T* out) {
  Normal<T>* wide = scratch;
  if constexpr (!kIsNarrow<T>) {
    wide = out;
  }
  for (int64_t i = 0; i < count; ++i) {
    wide[i] = normalised(pixels[i], affine);
  }
  if constexpr (kIsNarrow<T>) {
    store_row(set, wide, count, out);
  }
}

template <typename From, typename T>
void cut_patches(const VisiblePatches& args, const Parallel& parallel, Simd simd) {
  using A = Normal<T>;
  const TokenSizes size = args.size;
  const int64_t patch = args.patch;
  const int64_t area = patch * patch;
  const auto* images = static_cast<const From*>(args.images);
  const auto* mean = static_cast<const A*>(args.mean);
  const auto* std = static_cast<const A*>(args.std);
  auto* out = static_cast<T*>(args.out);
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(T));
  const auto corner_of = [&](int64_t row) {
    const int64_t image = row / size.kept;
    const int64_t id = args.keep.ids[image * args.keep.image_stride + row % size.kept * args.keep.token_stride];
    return images + image * args.image_stride + id / args.columns * patch * args.row_stride +
           id % args.columns * patch * args.column_stride;
  };
  parallel(size.images * size.kept, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    std::vector<From> pixels(area);
    std::vector<A> wide(kIsNarrow<T> ? area : 0);
    vectorised(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const From* corner = corner_of(i);
        const From* next = corner_of(std::min(i + 1, end - 1));
        for (int64_t c = 0; c < size.width / area; ++c) {
          prefetch_pixels(next + c * args.channel_stride, patch, args.row_stride, args.column_stride);
          cut_pixels(corner + c * args.channel_stride, patch, args.row_stride, args.column_stride, pixels.data());
          normalise_pixels(set, pixels.data(), area, normalisation<From>(mean, std, c), wide.data(),
                           out + i * size.width + c * area);
        }
      }
    });
  });
}

template <typename T, typename A>
void add_rows(const AddEmbeddings& args, const Parallel& parallel, Simd simd) {
  const TokenSizes size = args.size;
  const int64_t rows = size.prefix + size.kept;  // per image
  const auto* product = static_cast<const T*>(args.product);
  const auto* bias = static_cast<const A*>(args.bias);
  const auto* pos = static_cast<const A*>(args.pos);
  const auto* prefix = static_cast<const A*>(args.prefix);
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(A));
  parallel(size.images * rows, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    vectorised(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / rows;
        const int64_t place = i % rows - size.prefix;  // negative: a prefix row
        A* out = static_cast<A*>(args.out) + i * size.width;
        if (place < 0) {
          std::memcpy(out, prefix + i % rows * args.prefix_token_stride, row_bytes);
          continue;
        }
        widen_row(set, product + (image * size.kept + place) * size.width, size.width, out);
        if (pos == nullptr) {
          add_row(set, out, bias, size.width, out);
          continue;
        }
        const int64_t id = args.keep.ids[image * args.keep.image_stride + place * args.keep.token_stride];
        const A* position = pos + id * args.pos_token_stride;
        for (int64_t d = 0; d < size.width; ++d) {
          out[d] = out[d] + bias[d] + position[d];
        }
      }
    });
  });
}

}  // namespace

void visible_patches(const VisiblePatches& args, const Parallel& parallel, Simd simd) {
  check_keep("embed_visible", args.keep, args.size);
  if (args.size.width > 0) {
    dispatch_pixels(args.image_dtype, [&](auto pixel) {
      dispatch(args.dtype, [&](auto type) { cut_patches<decltype(pixel), decltype(type)>(args, parallel, simd); });
    });
  }
}

void add_embeddings(const AddEmbeddings& args, const Parallel& parallel, Simd simd) {
  if (args.pos != nullptr) {
    check_keep("embed_visible", args.keep, args.size);
  }
  if (args.size.width > 0) {
    dispatch(args.product_dtype, [&](auto type) {
      dispatch_wide(args.dtype, [&](auto wide) { add_rows<decltype(type), decltype(wide)>(args, parallel, simd); });
    });
  }
}

}  // namespace bimkern
