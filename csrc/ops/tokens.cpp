// CPU kernels of tokens.h. All are bound by memory: rows are copied or cleared whole, each byte of a result is written
// once, and the loops are parallel over rows of the result, so no two threads write one row.
#include "ops/tokens.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace bimkern {
namespace {

constexpr int64_t kGrainBytes = 64 * 1024;  // less work than this is not worth a thread

int64_t grain_rows(int64_t row_bytes) { return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, row_bytes)); }

void check_keep(const char* op, const Keep& keep, const TokenSizes& size) {
  for (int64_t image = 0; image < size.images; ++image) {
    int64_t previous = -1;
    for (int64_t k = 0; k < size.kept; ++k) {
      const int64_t id = keep.ids[image * keep.image_stride + k * keep.token_stride];
      BIMKERN_CHECK(id >= 0 && id < size.tokens, op, ": keep must hold ids in [0, N=", size.tokens, "), got ", id,
                    " in image ", image);
      BIMKERN_CHECK(id > previous, op, ": keep must ascend without repeats within an image, got ", id, " after ",
                    previous, " in image ", image);
      previous = id;
    }
  }
}

template <typename T>
void add_row(const T* a, const T* b, int64_t width, T* out) {
  using A = Arithmetic<T>;
  for (int64_t d = 0; d < width; ++d) {
    out[d] = A::store(A::load(a[d]) + A::load(b[d]));
  }
}

template <typename T>
void gather_rows(const GatherTokens& args, const Parallel& parallel) {
  const TokenSizes size = args.size;
  const auto* tokens = static_cast<const T*>(args.tokens);
  const auto* pos = static_cast<const T*>(args.pos);
  auto* out = static_cast<T*>(args.out);
  const int64_t rows = size.prefix + size.kept;  // per image
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(T));
  parallel(size.images * rows, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / rows;
      const int64_t place = i % rows - size.prefix;  // negative: a prefix row
      const int64_t* ids = args.keep.ids + image * args.keep.image_stride;
      const int64_t id = place < 0 ? place : ids[place * args.keep.token_stride];
      const T* source = tokens + image * args.tokens_image_stride + (size.prefix + id) * args.tokens_token_stride;
      if (place < 0 || pos == nullptr) {
        std::memcpy(out + i * size.width, source, row_bytes);
      } else {
        add_row(source, pos + id * args.pos_token_stride, size.width, out + i * size.width);
      }
    }
  });
}

template <typename T>
void scatter_rows(const GatherTokensBwd& args, const Parallel& parallel) {
  const TokenSizes size = args.size;
  const auto* grad = static_cast<const T*>(args.grad_out);
  auto* result = static_cast<T*>(args.result);
  const int64_t rows = size.prefix + size.tokens;  // per image
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(T));
  parallel(size.images * rows, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      const int64_t image = i / rows;
      const int64_t image_end = std::min(end, (image + 1) * rows);
      const int64_t* ids = args.keep.ids + image * args.keep.image_stride;
      const T* image_grad = grad + image * args.grad_image_stride;
      int64_t row = i % rows;
      for (; row < size.prefix && i < image_end; ++row, ++i) {
        std::memcpy(result + i * size.width, image_grad + row * args.grad_token_stride, row_bytes);
      }
      int64_t place = lower_bound(ids, args.keep.token_stride, size.kept, row - size.prefix);
      while (i < image_end) {
        const int64_t next = place < size.kept ? size.prefix + ids[place * args.keep.token_stride] : rows;
        const int64_t hidden = std::min(next - row, image_end - i);
        std::memset(result + i * size.width, 0, hidden * row_bytes);
        i += hidden;
        row += hidden;
        if (i < image_end) {
          std::memcpy(result + i * size.width, image_grad + (size.prefix + place) * args.grad_token_stride, row_bytes);
          ++i;
          ++row;
          ++place;
        }
      }
    }
  });
}

// Sums over images in their order, whatever the number of threads.
template <typename T>
void sum_rows(const GatherTokensBwd& args, const Parallel& parallel) {
  using A = Arithmetic<T>;
  const TokenSizes size = args.size;
  const auto* grad = static_cast<const T*>(args.grad_out);
  auto* result = static_cast<T*>(args.result);
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(T));
  parallel(size.tokens, grain_rows(row_bytes * size.images), [&](int64_t begin, int64_t end) {
    std::vector<typename A::type> sum(size.width);
    for (int64_t token = begin; token < end; ++token) {
      std::fill(sum.begin(), sum.end(), 0);
      for (int64_t image = 0; image < size.images; ++image) {
        const int64_t* ids = args.keep.ids + image * args.keep.image_stride;
        const int64_t place = find(ids, args.keep.token_stride, size.kept, token);
        if (place < 0) {
          continue;
        }
        const T* row = grad + image * args.grad_image_stride + (size.prefix + place) * args.grad_token_stride;
        for (int64_t d = 0; d < size.width; ++d) {
          sum[d] += A::load(row[d]);
        }
      }
      for (int64_t d = 0; d < size.width; ++d) {
        result[token * size.width + d] = A::store(sum[d]);
      }
    }
  });
}

}  // namespace

void gather_tokens(const GatherTokens& args, const Parallel& parallel) {
  check_keep("gather_tokens", args.keep, args.size);
  if (args.size.width > 0) {
    dispatch(args.dtype, [&](auto type) { gather_rows<decltype(type)>(args, parallel); });
  }
}

void gather_tokens_bwd(const GatherTokensBwd& args, const Parallel& parallel) {
  check_keep("gather_tokens_bwd", args.keep, args.size);
  if (args.size.width > 0) {
    dispatch(args.dtype, [&](auto type) { scatter_rows<decltype(type)>(args, parallel); });
  }
}

void gather_tokens_bwd_pos(const GatherTokensBwd& args, const Parallel& parallel) {
  check_keep("gather_tokens_bwd_pos", args.keep, args.size);
  if (args.size.width > 0) {
    dispatch(args.dtype, [&](auto type) { sum_rows<decltype(type)>(args, parallel); });
  }
}

}  // namespace bimkern
