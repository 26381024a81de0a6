// CPU kernels of match_predict.h.
//
// Pooling is parallel over cells. A product is parallel over blocks of its result, each of which sums runs of kDepth
// products in registers and adds those to memory, so that no bit depends on blocks or threads.
#include "ops/match_predict.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/lane_product.h"
#include "core/rows.h"
#include "ops/match_squares.h"

namespace bimkern {
namespace {

template <typename A>
void pool(const MatchPool& args, const Parallel& parallel, Simd simd) {
  const int64_t cells = args.rows / 2 * (args.columns / 2), width = args.width;
  parallel(args.images * cells, grain_rows(4 * width * bytes_of(args.tokens_dtype)), [&](int64_t begin, int64_t end) {
    std::vector<A> row(width);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t size = bytes_of(args.dtype);
        if (args.weight != nullptr && static_cast<const A*>(args.weight)[i] == 0) {
          std::memset(static_cast<char*>(args.out) + i * width * size, 0, width * size);
          continue;
        }
        const int64_t first = i / cells * args.image_stride + corner_of(i % cells, args.columns) * args.token_stride;
        visit_row<A>(args.tokens_dtype, args.tokens, first, [&](const auto* token) BIMKERN_INLINE {
          mean_of_square(set, token, args.token_stride, args.columns * args.token_stride, width, row.data());
        });
        store_row(set, row.data(), width, args.dtype, args.out, i * width);
      }
    });
  });
}

template <typename A>
void pool_bwd(const MatchPoolBwd& args, const Parallel& parallel, Simd simd) {
  const int64_t cells = args.rows / 2 * (args.columns / 2), width = args.width;
  parallel(args.images * cells, grain_rows(4 * width * bytes_of(args.tokens_dtype)), [&](int64_t begin, int64_t end) {
    std::vector<A> row(width);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        load_row(set, args.dtype, args.grad, i * width, width, row.data());
        quarter_row(width, row.data());
        const int64_t first = i / cells * (4 * cells) + corner_of(i % cells, args.columns);
        for (const int64_t token : {int64_t{0}, int64_t{1}, args.columns, args.columns + 1}) {
          store_row(set, row.data(), width, args.tokens_dtype, args.grad_tokens, (first + token) * width);
        }
      }
    });
  });
}

// A block of the result, that one thread makes.
constexpr int64_t kBlockRows = 120;
constexpr int64_t kBlockColumns = 128;
constexpr int64_t kNarrowColumns = 64;  // where there is one block of rows: more threads find work
constexpr int64_t kFewRows = 32;        // not worth packing for

}  // namespace

void match_pool(const MatchPool& args, const Parallel& parallel, Simd simd) {
  dispatch_arithmetic(args.dtype, [&](auto type) { pool<decltype(type)>(args, parallel, simd); });
}

void match_pool_bwd(const MatchPoolBwd& args, const Parallel& parallel, Simd simd) {
  dispatch_arithmetic(args.dtype, [&](auto type) { pool_bwd<decltype(type)>(args, parallel, simd); });
}

void match_product(const MatchProduct& args, const Parallel& parallel, Simd simd) {
  const int64_t down = ceil_div(args.rows, kBlockRows), wide = down > 1 ? kBlockColumns : kNarrowColumns;
  const int64_t across = ceil_div(args.columns, wide);
  parallel(down * across, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float right[kDepth * kBlockColumns];
    const float* packed = nullptr;
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / across * kBlockRows, column = i % across * wide;
        LaneProduct part{};
        part.rows = std::min(kBlockRows, args.rows - row);
        part.columns = std::min(wide, args.columns - column);
        part.left_row_stride = args.left_row_stride;
        part.left_depth_stride = args.left_depth_stride;
        part.out = args.out + row * args.out_stride + column;
        part.out_stride = args.out_stride;
        int64_t k = 0;
        do {  // once where depth is 0, too
          part.depth = std::min(kDepth, args.depth - k);
          part.left = args.left + row * args.left_row_stride + k * args.left_depth_stride;
          const bool adds = args.add || k > 0;
          part.before = adds ? part.out : args.bias == nullptr ? nullptr : args.bias + column;
          part.before_stride = adds ? args.out_stride : 0;
          const float* from = args.right + k * args.right_stride + column;
          const bool direct = part.rows <= kFewRows && part.columns == padded(part.columns);
          if (!direct && packed != from) {
            pack_rows(from, args.right_stride, part.depth, part.columns, right);
            packed = from;
          }
          part.right = direct ? from : right;
          part.right_stride = direct ? args.right_stride : padded(part.columns);
          multiply(set, part);
          k += kDepth;
        } while (k < args.depth);
      }
    });
  });
}

}  // namespace bimkern
