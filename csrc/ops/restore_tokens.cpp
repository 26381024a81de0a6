// CPU kernels of restore_tokens.h, all bound by memory.
//
// forward: parallel over rows of the result. Reads the visible rows, writes every row once; a masked row is the same in
// all images, so it is added once and then copied from the caches. Ordinary stores: streaming ones save reading the
// result before it is written and lose more than that to the next reader.
// backward: parallel over tokens, one pass over the gradient. A thread walks its tokens a group of images at a time,
// and adds several rows of a token in one pass over their sum, which costs more than reading them. It copies the rows
// of kept tokens out and adds every row to a sum of its token: one of the images that mask it, one of those that keep
// it. Sums go over images in their order, then over tokens, whatever the number of threads.
#include "ops/restore_tokens.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "core/rows.h"
#include "ops/pixels.h"

namespace bimkern {
namespace {

constexpr size_t kLine = 64;               // bytes of a line of the caches
constexpr int64_t kTableImages = 4;        // from so many on, masked rows are added in a table
constexpr int64_t kGroup = 16;             // images whose rows of a token are added one after another
constexpr int kSideBySide = 8;             // rows that are added in one pass over their sum
constexpr int64_t kSumBytes = 128 * 1024;  // of each of the two sums that a thread keeps in its second-level cache

// Line by line: a call of memcpy takes longer, where what is written lies in memory.
template <typename T>
BIMKERN_INLINE inline void copy_row(const T* from, int64_t width, T* to) {
  const size_t bytes = width * sizeof(T);
  if (bytes < kLine) {
    std::memcpy(to, from, bytes);
    return;
  }
  copy_chunks<kLine>(reinterpret_cast<const char*>(from), bytes, reinterpret_cast<char*>(to));
}

template <typename T>
void restore_rows(const RestoreTokens& args, const int32_t* positions, const Parallel& parallel, Simd simd) {
  const TokenSizes size = args.size;
  const auto* visible = static_cast<const T*>(args.visible);
  const auto* mask_token = static_cast<const T*>(args.mask_token);
  const auto* pos = static_cast<const T*>(args.pos);
  auto* out = static_cast<T*>(args.out);
  const int64_t rows = size.prefix + size.tokens;  // per image
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(T));
  const bool table_pays = pos != nullptr && size.images >= kTableImages && size.kept < size.tokens;
  const std::unique_ptr<T[]> masked(table_pays ? new T[size.tokens * size.width] : nullptr);
  if (table_pays) {
    parallel(size.tokens, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
      vectorized(simd, [&](auto set) BIMKERN_INLINE {
        for (int64_t token = begin; token < end; ++token) {
          add_row(set, mask_token, pos + token * args.pos_token_stride, size.width, &masked[token * size.width]);
        }
      });
    });
  }
  parallel(size.images * rows, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / rows;
        const int64_t token = i % rows - size.prefix;  // negative: a prefix row
        const int64_t position = token < 0 ? token : positions[image * size.tokens + token];
        const bool is_masked = token >= 0 && position == kMasked;
        const T* source = table_pays ? &masked[std::max<int64_t>(token, 0) * size.width] : mask_token;
        if (!is_masked) {
          source = visible + image * args.visible_image_stride + (size.prefix + position) * args.visible_token_stride;
        }
        if (token < 0 || pos == nullptr || (table_pays && is_masked)) {
          copy_row(source, size.width, out + i * size.width);
        } else {
          add_row(set, source, pos + token * args.pos_token_stride, size.width, out + i * size.width);
        }
      }
    });
  });
}

template <typename T>
void copy_prefix(const RestoreTokensBwd& args, const Parallel& parallel) {
  const TokenSizes size = args.size;
  const int64_t row_bytes = size.width * static_cast<int64_t>(sizeof(T));
  parallel(size.images * size.prefix, grain_rows(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / size.prefix;
      const int64_t row = i % size.prefix;
      const T* grad = static_cast<const T*>(args.grad_out) + image * args.grad_image_stride;
      T* grad_visible = static_cast<T*>(args.grad_visible) + image * (size.prefix + size.kept) * size.width;
      std::memcpy(grad_visible + row * size.width, grad + row * args.grad_token_stride, row_bytes);
    }
  });
}

// Rows of one token in a group of images, and where they are copied to.
template <typename T>
struct TokenRows {
  const T* rows[kGroup];
  T* copies[kGroup];  // not set where they are added alone
  int count = 0;
};

// sum += kCount rows, one after another, in one pass; kCopy: copies them, too. Asks for what lies `ahead` elements
// behind them, into the second-level cache as pixels.h does.
template <bool kCopy, int kCount, typename Set, typename T>
BIMKERN_INLINE inline void accumulate_rows(Set set, const T* const* rows, T* const* copies, int64_t ahead,
                                           int64_t width, typename Arithmetic<T>::type* sum) {
  const int64_t packets = width / kConverted * kConverted;
  for (int64_t d = 0; d < packets; d += kConverted) {
    typename Arithmetic<T>::type total[kConverted], row[kConverted];
    std::memcpy(total, sum + d, sizeof(total));
    for (int i = 0; i < kCount; ++i) {
      for (int line = 0; line < kConverted; line += kLine / sizeof(T)) {
        __builtin_prefetch(rows[i] + ahead + d + line, 0, 2);
      }
      load_packet<kConverted>(set, rows[i] + d, row);
      for (int j = 0; j < kConverted; ++j) {
        total[j] += row[j];
      }
      if constexpr (kCopy) {
        std::memcpy(copies[i] + d, rows[i] + d, kConverted * sizeof(T));
      }
    }
    std::memcpy(sum + d, total, sizeof(total));
  }
  for (int64_t d = packets; d < width; ++d) {
    for (int i = 0; i < kCount; ++i) {
      sum[d] += Arithmetic<T>::load(rows[i][d]);
      if constexpr (kCopy) {
        copies[i][d] = rows[i][d];
      }
    }
  }
}

// The same of count rows, at most kMost.
template <bool kCopy, int kMost, typename Set, typename T>
BIMKERN_INLINE inline void accumulate_up_to(Set set, int count, const T* const* rows, T* const* copies, int64_t ahead,
                                            int64_t width, typename Arithmetic<T>::type* sum) {
  if constexpr (kMost > 1) {
    if (count < kMost) {
      return accumulate_up_to<kCopy, kMost - 1>(set, count, rows, copies, ahead, width, sum);
    }
  }
  accumulate_rows<kCopy, kMost>(set, rows, copies, ahead, width, sum);
}

template <bool kCopy, typename Set, typename T>
BIMKERN_INLINE inline void accumulate(Set set, const TokenRows<T>& token, int64_t ahead, int64_t width,
                                      typename Arithmetic<T>::type* sum) {
  for (int first = 0; first < token.count; first += kSideBySide) {
    const int count = std::min(kSideBySide, token.count - first);
    accumulate_up_to<kCopy, kSideBySide>(set, count, token.rows + first, token.copies + first, ahead, width, sum);
  }
}

// Gradients of the tokens [begin, end): those of visible, the sums of pos, and the masked sums.
template <typename Set, typename T>
BIMKERN_INLINE inline void restore_bwd_tokens(Set set, const RestoreTokensBwd& args, const int32_t* positions,
                                              int64_t begin, int64_t end, typename Arithmetic<T>::type* kept_sums) {
  const TokenSizes size = args.size;
  auto* masked_sums = static_cast<typename Arithmetic<T>::type*>(args.masked_sums) + begin * size.width;
  std::fill_n(masked_sums, (end - begin) * size.width, 0);
  std::fill_n(kept_sums, (end - begin) * size.width, 0);
  for (int64_t first = 0; first < size.images; first += kGroup) {
    const int64_t last = std::min(first + kGroup, size.images);
    for (int64_t token = begin; token < end; ++token) {
      TokenRows<T> masked, kept;
      for (int64_t image = first; image < last; ++image) {
        const T* row = static_cast<const T*>(args.grad_out) + image * args.grad_image_stride +
                       (size.prefix + token) * args.grad_token_stride;
        const int64_t position = positions[image * size.tokens + token];
        if (position == kMasked) {
          masked.rows[masked.count++] = row;
        } else {
          kept.copies[kept.count] = static_cast<T*>(args.grad_visible) +
                                    (image * (size.prefix + size.kept) + size.prefix + position) * size.width;
          kept.rows[kept.count++] = row;
        }
      }
      const int64_t ahead = token + 1 < end ? args.grad_token_stride : 0;
      accumulate<false>(set, masked, ahead, size.width, masked_sums + (token - begin) * size.width);
      accumulate<true>(set, kept, ahead, size.width, kept_sums + (token - begin) * size.width);
    }
  }
  if (args.grad_pos != nullptr) {
    for (int64_t i = 0; i < (end - begin) * size.width; ++i) {
      kept_sums[i] += masked_sums[i];
    }
    store_row(set, kept_sums, (end - begin) * size.width, static_cast<T*>(args.grad_pos) + begin * size.width);
  }
}

// In float64: these sums are N times as long as those over images.
template <typename T>
void sum_tokens(const RestoreTokensBwd& args, const Parallel& parallel, Simd simd) {
  using Sum = typename Arithmetic<T>::type;
  const TokenSizes size = args.size;
  const auto* masked_sums = static_cast<const Sum*>(args.masked_sums);
  auto* grad_mask_token = static_cast<T*>(args.grad_mask_token);
  parallel(size.width, grain_rows(size.tokens * static_cast<int64_t>(sizeof(Sum))), [&](int64_t begin, int64_t end) {
    std::vector<double> sums(end - begin);
    vectorized(simd, [&](auto) BIMKERN_INLINE {
      for (int64_t token = 0; token < size.tokens; ++token) {
        for (int64_t d = begin; d < end; ++d) {
          sums[d - begin] += masked_sums[token * size.width + d];
        }
      }
      for (int64_t d = begin; d < end; ++d) {
        grad_mask_token[d] = Arithmetic<T>::store(static_cast<Sum>(sums[d - begin]));
      }
    });
  });
}

template <typename T>
void restore_bwd(const RestoreTokensBwd& args, const int32_t* positions, const Parallel& parallel, Simd simd) {
  using Sum = typename Arithmetic<T>::type;
  const TokenSizes size = args.size;
  copy_prefix<T>(args, parallel);
  const int64_t block = std::max<int64_t>(1, kSumBytes / (size.width * static_cast<int64_t>(sizeof(Sum))));
  const int64_t token_bytes = size.images * size.width * static_cast<int64_t>(sizeof(T));
  parallel(size.tokens, grain_rows(token_bytes), [&](int64_t begin, int64_t end) {
    std::vector<Sum> kept_sums(std::min(block, end - begin) * size.width);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t first = begin; first < end; first += block) {
        restore_bwd_tokens<decltype(set), T>(set, args, positions, first, std::min(end, first + block),
                                             kept_sums.data());
      }
    });
  });
  sum_tokens<T>(args, parallel, simd);
}

}  // namespace

void restore_tokens(const RestoreTokens& args, const Parallel& parallel, Simd simd) {
  const std::vector<int32_t> positions = positions_of("restore_tokens", args.keep, args.size);
  if (args.size.width > 0) {
    dispatch(args.dtype, [&](auto type) { restore_rows<decltype(type)>(args, positions.data(), parallel, simd); });
  }
}

void restore_tokens_bwd(const RestoreTokensBwd& args, const Parallel& parallel, Simd simd) {
  const std::vector<int32_t> positions = positions_of("restore_tokens_bwd", args.keep, args.size);
  if (args.size.width > 0) {
    dispatch(args.dtype, [&](auto type) { restore_bwd<decltype(type)>(args, positions.data(), parallel, simd); });
  }
}

}  // namespace bimkern
