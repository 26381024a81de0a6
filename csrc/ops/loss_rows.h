// What masked_loss and masked_pixel_loss share: a weighted error of prediction rows, whoever brings the target rows.
//
// Letters: B images, N tokens, P values a token. All strides count elements. Arithmetic is done in `dtype`. Rows of
// weight zero do not count: neither they nor their targets are read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "core/parallel.h"
#include "core/rows.h"

namespace bimkern {

enum class LossKind : int32_t { kL2, kL1 };

struct LossRows {
  DType pred_dtype;  // any
  DType dtype;       // of weight, denominator and the loss: float32 or float64
  LossKind kind;
  int64_t images;
  int64_t tokens;
  int64_t length;    // P
  const void* pred;  // [B, N, P], P contiguous
  int64_t pred_image_stride;
  int64_t pred_token_stride;
  const void* weight;  // [B, N]
  int64_t weight_image_stride;
  int64_t weight_token_stride;
  const void* denominator;  // scalar; zero makes loss and gradients zero

  int64_t count() const { return images * tokens; }
  int64_t pred_bytes() const { return pred_dtype == DType::kFloat64 ? 8 : pred_dtype == DType::kFloat32 ? 4 : 2; }
};

// Where the loss goes.
struct LossSum {
  void* loss;        // scalar
  void* row_losses;  // [B, N], scratch of the same type
};

// Where gradients come from and go.
struct LossGrad {
  const void* grad_loss;  // scalar, of the type of the loss
  void* grad_pred;        // [B, N, P], dense, of the type of pred
};

// Where row i of [B, N, ...] starts; most often without a division, which takes as long as a short row.
inline int64_t row_offset(int64_t i, int64_t tokens, int64_t image_stride, int64_t token_stride) {
  return image_stride == tokens * token_stride ? i * token_stride
                                               : i / tokens * image_stride + i % tokens * token_stride;
}

// Weights and where rows are. A: what is computed in.
template <typename A>
class WeightedRows {
 public:
  explicit WeightedRows(const LossRows& rows) : rows_(rows) {}

  A weight(int64_t i) const {
    const int64_t at = row_offset(i, rows_.tokens, rows_.weight_image_stride, rows_.weight_token_stride);
    return static_cast<const A*>(rows_.weight)[at];
  }

  // The first row from i on that counts; end if there is none before it.
  int64_t next(int64_t i, int64_t end) const {
    while (i < end && weight(i) == 0) {
      ++i;
    }
    return i;
  }

  A denominator() const { return *static_cast<const A*>(rows_.denominator); }

 private:
  const LossRows& rows_;
};

// Rows of any type. The type is chosen by the row: by the kernel, it would be compiled for each pair of types of
// predictions and targets.
class AnyRows {
 public:
  AnyRows(DType dtype, const void* rows, int64_t tokens, int64_t image_stride, int64_t token_stride)
      : dtype_(dtype), rows_(rows), tokens_(tokens), image_stride_(image_stride), token_stride_(token_stride) {}

  // Calls f with row i, [P].
  template <typename F>
  BIMKERN_INLINE void visit(int64_t i, const F& f) const {
    const int64_t offset = row_offset(i, tokens_, image_stride_, token_stride_);
    switch (dtype_) {
      case DType::kFloat32:
        return f(static_cast<const float*>(rows_) + offset);
      case DType::kFloat16:
        return f(static_cast<const float16*>(rows_) + offset);
      case DType::kBFloat16:
        return f(static_cast<const bfloat16*>(rows_) + offset);
      default:
        return f(static_cast<const double*>(rows_) + offset);
    }
  }

 private:
  DType dtype_;
  const void* rows_;
  int64_t tokens_;
  int64_t image_stride_;
  int64_t token_stride_;
};

inline AnyRows pred_rows(const LossRows& rows) {
  return AnyRows(rows.pred_dtype, rows.pred, rows.tokens, rows.pred_image_stride, rows.pred_token_stride);
}

// Sum of the errors of a row.
template <typename Set, typename T, typename A>
BIMKERN_INLINE inline A row_error(Set set, LossKind kind, const T* pred, const A* target, int64_t length) {
  const auto sum_of = [=](const auto error) BIMKERN_INLINE {
    const auto packet = [=](int64_t j, A* errors) BIMKERN_INLINE {
      const A* wide = as_packet(set, pred + j, errors);
      for (int k = 0; k < kLanes; ++k) {
        errors[k] = error(wide[k] - target[j + k]);
      }
    };
    return lane_sum<A>(length, packet,
                       [=](int64_t j) BIMKERN_INLINE { return error(load_as<A>(pred[j]) - target[j]); });
  };
  return kind == LossKind::kL2 ? sum_of([](A difference) BIMKERN_INLINE { return difference * difference; })
                               : sum_of([](A difference) BIMKERN_INLINE { return std::abs(difference); });
}

// Its gradient, where that of the sum is factor.
template <typename Set, typename T, typename A>
BIMKERN_INLINE inline void row_slopes(Set set, LossKind kind, const T* pred, const A* target, int64_t length, A factor,
                                      T* out) {
  const auto write = [=](const auto slope) BIMKERN_INLINE {
    const auto packet = [=](int64_t j) BIMKERN_INLINE {
      A slopes[kPacket];
      const A* wide = as_packet(set, pred + j, slopes);
      for (int k = 0; k < kPacket; ++k) {
        slopes[k] = slope(wide[k] - target[j + k]);
      }
      store_packet(set, slopes, out + j);
    };
    cover_row(length, packet,
              [=](int64_t j) BIMKERN_INLINE { out[j] = store_as<T>(slope(load_as<A>(pred[j]) - target[j])); });
  };
  if (kind == LossKind::kL2) {
    const A twice = 2 * factor;
    return write([=](A difference) BIMKERN_INLINE { return twice * difference; });
  }
  write([=](A difference)
            BIMKERN_INLINE { return factor * (static_cast<A>(difference > 0) - static_cast<A>(difference < 0)); });
}

// make_targets() gives a thread its source of target rows: prefetch(i), and read(set, i), which returns [P].
template <typename A, typename MakeTargets>
void sum_rows(const LossRows& args, const LossSum& sum, const MakeTargets& make_targets, const Parallel& parallel,
              Simd simd) {
  const WeightedRows<A> rows(args);
  const int64_t length = args.length;
  auto* row_losses = static_cast<A*>(sum.row_losses);
  parallel(args.count(), grain_rows(length * static_cast<int64_t>(sizeof(A))), [&](int64_t begin, int64_t end) {
    const AnyRows preds = pred_rows(args);
    auto targets = make_targets();
    vectorised(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const A weight = rows.weight(i);
        if (weight == 0) {
          row_losses[i] = 0;
          continue;
        }
        targets.prefetch(rows.next(std::min(i + 1, end - 1), end - 1));
        const A* target = targets.read(set, i);
        preds.visit(i, [&](const auto* pred) BIMKERN_INLINE {
          row_losses[i] = weight * (row_error(set, args.kind, pred, target, length) / static_cast<A>(length));
        });
      }
    });
  });
  double total = 0;
  vectorised(simd, [&](auto) BIMKERN_INLINE {
    total =
        lane_sum<double>(args.count(), [=](int64_t i) BIMKERN_INLINE { return static_cast<double>(row_losses[i]); });
  });
  const A denominator = rows.denominator();
  *static_cast<A*>(sum.loss) = denominator == 0 ? A{0} : static_cast<A>(total / static_cast<double>(denominator));
}

template <typename A, typename MakeTargets>
void differentiate_rows(const LossRows& args, const LossGrad& grad, const MakeTargets& make_targets,
                        const Parallel& parallel, Simd simd) {
  const WeightedRows<A> rows(args);
  const int64_t length = args.length;
  const A denominator = rows.denominator();
  const int64_t row_bytes = length * args.pred_bytes();
  const A share = *static_cast<const A*>(grad.grad_loss) / (denominator * static_cast<A>(length));
  parallel(args.count(), grain_rows(length * static_cast<int64_t>(sizeof(A))), [&](int64_t begin, int64_t end) {
    const AnyRows preds = pred_rows(args);
    auto targets = make_targets();
    vectorised(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const A weight = rows.weight(i);
        if (weight == 0 || denominator == 0) {
          std::memset(static_cast<char*>(grad.grad_pred) + i * row_bytes, 0, row_bytes);
          continue;
        }
        targets.prefetch(rows.next(std::min(i + 1, end - 1), end - 1));
        const A* target = targets.read(set, i);
        preds.visit(i, [&](const auto* pred) BIMKERN_INLINE {
          using T = std::remove_const_t<std::remove_pointer_t<decltype(pred)>>;
          T* out = static_cast<T*>(grad.grad_pred) + i * length;
          row_slopes(set, args.kind, pred, target, length, weight * share, out);
        });
      }
    });
  });
}

}  // namespace bimkern
