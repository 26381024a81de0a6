// CPU kernels of gather_tokens.h. All are bound by memory: rows are copied or cleared whole, each byte of a result is
// written once, and the loops are parallel over rows of the result, so no two threads write one row.
#include "ops/gather_tokens.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/rows.h"

namespace bimkern {
namespace {

constexpr int64_t kSumBytes = 128 * 1024;  // of the sums that a thread keeps in its second-level cache

template <typename T>
void gather_rows(const GatherTokens& args, const Parallel& parallel, Simd simd) {
  const TokenSizes size = args.size;
  const auto* tokens = static_cast<const T*>(args.tokens);
  const auto* pos = static_cast<const T*>(args.pos);
  auto* out = static_cast<T*>(args.out);
  const int64_t sources = size.images / args.masks;
  const int64_t rows = size.prefix + size.kept;  // per image
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(T));
  parallel(size.images * rows, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / rows;
        const int64_t position = i % rows - size.prefix;  // negative: a prefix row
        const int64_t* ids = args.keep.ids + image * args.keep.image_stride;
        const int64_t id = position < 0 ? position : ids[position * args.keep.token_stride];
        const T* source =
            tokens + image % sources * args.tokens_image_stride + (size.prefix + id) * args.tokens_token_stride;
        if (position < 0 || pos == nullptr) {
          std::memcpy(out + i * size.width, source, row_bytes);
        } else {
          add_row(set, source, pos + id * args.pos_token_stride, size.width, out + i * size.width);
        }
      }
    });
  });
}

template <typename T>
void scatter_rows(const GatherTokensBwd& args, const int32_t* positions, const Parallel& parallel) {
  const TokenSizes size = args.size;
  const auto* grad = static_cast<const T*>(args.grad_out);
  auto* result = static_cast<T*>(args.result);
  const int64_t rows = size.prefix + size.tokens;  // per image
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(T));
  parallel(size.images * rows, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t image = i / rows;
      const int64_t image_end = std::min(end, (image + 1) * rows);
      const int32_t* image_positions = positions + image * size.tokens - size.prefix;  // of a row
      const T* image_grad = grad + image * args.grad_image_stride;
      int64_t row = i % rows;
      for (; row < size.prefix && i < image_end; ++row, ++i) {
        std::memcpy(result + i * size.width, image_grad + row * args.grad_token_stride, row_bytes);
      }
      while (i < image_end) {
        int64_t masked = 0;
        while (i + masked < image_end && image_positions[row + masked] == kMasked) {
          ++masked;
        }
        std::memset(result + i * size.width, 0, masked * row_bytes);
        i += masked;
        row += masked;
        for (; i < image_end && image_positions[row] != kMasked; ++row, ++i) {
          const int64_t from = size.prefix + image_positions[row];
          std::memcpy(result + i * size.width, image_grad + from * args.grad_token_stride, row_bytes);
        }
      }
    }
  });
}

// Every row is the sum over the masks of its image that keep it, in their order. Most are kept by one or none.
template <typename T>
void sum_masks(const GatherTokensBwd& args, const int32_t* positions, const Parallel& parallel, Simd simd) {
  using Sum = typename Arithmetic<T>::type;
  const TokenSizes size = args.size;
  const auto* grad = static_cast<const T*>(args.grad_out);
  const int64_t sources = size.images / args.masks;
  const int64_t rows = size.prefix + size.tokens;  // per image
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(T));
  parallel(sources * rows, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    std::vector<Sum> sum(size.width);
    std::vector<const T*> kept;
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t token = i % rows - size.prefix;  // negative: a prefix row
        kept.clear();
        for (int64_t image = i / rows; image < size.images; image += sources) {
          const int64_t position = token < 0 ? token : positions[image * size.tokens + token];
          if (token < 0 || position != kMasked) {
            kept.push_back(grad + image * args.grad_image_stride + (size.prefix + position) * args.grad_token_stride);
          }
        }
        T* out = static_cast<T*>(args.result) + i * size.width;
        if (kept.empty()) {
          std::memset(out, 0, row_bytes);
        } else if (kept.size() == 1) {
          std::memcpy(out, kept[0], row_bytes);
        } else if (kept.size() == 2) {
          add_row(set, kept[0], kept[1], size.width, out);
        } else {
          load_row(set, kept[0], size.width, sum.data());
          for (size_t k = 1; k < kept.size(); ++k) {
            accumulate_row(set, kept[k], size.width, sum.data());
          }
          store_row(set, sum.data(), size.width, out);
        }
      }
    });
  });
}

// Sums over images in their order, whatever the number of threads. A thread takes a block of tokens through all images,
// because the rows of neighboring tokens lie together.
template <typename T>
void sum_rows(const GatherTokensBwd& args, const int32_t* positions, const Parallel& parallel, Simd simd) {
  using Sum = typename Arithmetic<T>::type;
  const TokenSizes size = args.size;
  auto* result = static_cast<T*>(args.result);
  const int64_t block = std::max<int64_t>(1, kSumBytes / (size.width * static_cast<int64_t>(sizeof(Sum))));
  const int64_t token_bytes = size.images * size.width * static_cast<int64_t>(sizeof(T));
  parallel(size.tokens, grain_rows(token_bytes), [&](int64_t begin, int64_t end) {
    std::vector<Sum> sums(std::min(block, end - begin) * size.width);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t first = begin; first < end; first += block) {
        const int64_t last = std::min(end, first + block);
        std::fill(sums.begin(), sums.end(), 0);
        for (int64_t image = 0; image < size.images; ++image) {
          const T* grad = static_cast<const T*>(args.grad_out) + image * args.grad_image_stride;
          for (int64_t token = first; token < last; ++token) {
            const int32_t position = positions[image * size.tokens + token];
            if (position != kMasked) {
              const T* row = grad + (size.prefix + position) * args.grad_token_stride;
              accumulate_row(set, row, size.width, sums.data() + (token - first) * size.width);
            }
          }
        }
        store_row(set, sums.data(), (last - first) * size.width, result + first * size.width);
      }
    });
  });
}

}  // namespace

void gather_tokens(const GatherTokens& args, const Parallel& parallel, Simd simd) {
  check_keep("gather_tokens", args.keep, args.size);
  if (args.size.width > 0) {
    dispatch(args.dtype, [&](auto type) { gather_rows<decltype(type)>(args, parallel, simd); });
  }
}

void gather_tokens_bwd(const GatherTokensBwd& args, const Parallel& parallel, Simd simd) {
  const std::vector<int32_t> positions = positions_of("gather_tokens_bwd", args.keep, args.size);
  if (args.size.width > 0) {
    dispatch(args.dtype, [&](auto type) {
      if (args.masks == 1) {
        scatter_rows<decltype(type)>(args, positions.data(), parallel);
      } else {
        sum_masks<decltype(type)>(args, positions.data(), parallel, simd);
      }
    });
  }
}

void gather_tokens_bwd_pos(const GatherTokensBwd& args, const Parallel& parallel, Simd simd) {
  const std::vector<int32_t> positions = positions_of("gather_tokens_bwd_pos", args.keep, args.size);
  if (args.size.width > 0) {
    dispatch(args.dtype, [&](auto type) { sum_rows<decltype(type)>(args, positions.data(), parallel, simd); });
  }
}

}  // namespace bimkern
