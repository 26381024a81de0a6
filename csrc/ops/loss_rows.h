// What masked_loss and masked_pixel_loss share: a weighted error of prediction rows, whoever brings the target rows.
//
// Letters: B images, N tokens, P values a token. All strides count elements. Arithmetic is done in `dtype`. Rows of
// weight zero do not count: neither they nor their targets are read.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

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

// Weights and where rows are. A: what is computed in.
template <typename A>
class WeightedRows {
 public:
  explicit WeightedRows(const LossRows& rows) : rows_(rows) {}

  A weight(int64_t i) const {
    return static_cast<const A*>(
        rows_.weight)[i / rows_.tokens * rows_.weight_image_stride + i % rows_.tokens * rows_.weight_token_stride];
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

// Rows of any type, read as A one at a time. The type is chosen by the row: by the kernel, it would be compiled for
// each pair of types of predictions and targets.
template <typename A>
class WideRows {
 public:
  WideRows(DType dtype, const void* rows, int64_t tokens, int64_t length, int64_t image_stride, int64_t token_stride)
      : dtype_(dtype),
        rows_(rows),
        tokens_(tokens),
        length_(length),
        image_stride_(image_stride),
        token_stride_(token_stride),
        scratch_(length) {}

  void prefetch(int64_t) const {}  // rows are long runs, which the machine foresees

  // [P]: the row itself, or a copy that lasts until the next.
  template <typename Set>
  BIMKERN_INLINE const A* read(Set set, int64_t i) {
    const int64_t offset = i / tokens_ * image_stride_ + i % tokens_ * token_stride_;
    switch (dtype_) {
      case DType::kFloat32:
        return widened(set, static_cast<const float*>(rows_) + offset);
      case DType::kFloat16:
        return widened(set, static_cast<const float16*>(rows_) + offset);
      case DType::kBFloat16:
        return widened(set, static_cast<const bfloat16*>(rows_) + offset);
      default:
        return widened(set, static_cast<const double*>(rows_) + offset);
    }
  }

 private:
  template <typename Set, typename T>
  BIMKERN_INLINE const A* widened(Set set, const T* row) {
    if constexpr (std::is_same_v<T, A>) {
      return row;
    } else {
      widen_row(set, row, length_, scratch_.data());
      return scratch_.data();
    }
  }

  DType dtype_;
  const void* rows_;
  int64_t tokens_;
  int64_t length_;
  int64_t image_stride_;
  int64_t token_stride_;
  std::vector<A> scratch_;
};

template <typename A>
WideRows<A> pred_rows(const LossRows& rows) {
  return WideRows<A>(rows.pred_dtype, rows.pred, rows.tokens, rows.length, rows.pred_image_stride,
                     rows.pred_token_stride);
}

// Rows of any type, [B * N, P] without gaps, written from A one at a time.
template <typename A>
class NarrowRows {
 public:
  NarrowRows(DType dtype, void* rows, int64_t length)
      : dtype_(dtype),
        bytes_(length * size_of(dtype)),
        rows_(static_cast<char*>(rows)),
        length_(length),
        scratch_(length) {}

  void write_zeros(int64_t i) const { std::memset(rows_ + i * bytes_, 0, bytes_); }

  // Where row i can be computed, to be written by finish(i).
  A* begin(int64_t i) { return is_same() ? reinterpret_cast<A*>(rows_ + i * bytes_) : scratch_.data(); }

  template <typename Set>
  BIMKERN_INLINE void finish(Set set, int64_t i) {
    if (is_same()) {
      return;
    }
    switch (dtype_) {
      case DType::kFloat32:
        return narrow(set, reinterpret_cast<float*>(rows_ + i * bytes_));
      case DType::kFloat16:
        return narrow(set, reinterpret_cast<float16*>(rows_ + i * bytes_));
      case DType::kBFloat16:
        return narrow(set, reinterpret_cast<bfloat16*>(rows_ + i * bytes_));
      default:
        return narrow(set, reinterpret_cast<double*>(rows_ + i * bytes_));
    }
  }

 private:
  static int64_t size_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

  bool is_same() const { return dtype_ == (std::is_same_v<A, double> ? DType::kFloat64 : DType::kFloat32); }

  template <typename Set, typename T>
  BIMKERN_INLINE void narrow(Set set, T* out) const {
    if constexpr (kIsNarrow<T> && std::is_same_v<A, float>) {
      store_row(set, scratch_.data(), length_, out);
    } else {
      for (int64_t j = 0; j < length_; ++j) {
        out[j] = Arithmetic<T>::store(static_cast<typename Arithmetic<T>::type>(scratch_[j]));
      }
    }
  }

  DType dtype_;
  int64_t bytes_;  // of a row
  char* rows_;
  int64_t length_;
  std::vector<A> scratch_;
};

// Sum of the errors of a row.
template <typename A>
BIMKERN_INLINE inline A row_error(LossKind kind, const A* pred, const A* target, int64_t length) {
  if (kind == LossKind::kL2) {
    return lane_sum<A>(length, [&](int64_t j) BIMKERN_INLINE {
      const A difference = pred[j] - target[j];
      return difference * difference;
    });
  }
  return lane_sum<A>(length, [&](int64_t j) BIMKERN_INLINE { return std::abs(pred[j] - target[j]); });
}

// Its gradient, where that of the sum is factor.
template <typename A>
BIMKERN_INLINE inline void row_slopes(LossKind kind, const A* pred, const A* target, int64_t length, A factor, A* out) {
  if (kind == LossKind::kL2) {
    const A twice = 2 * factor;
    for (int64_t j = 0; j < length; ++j) {
      out[j] = twice * (pred[j] - target[j]);
    }
    return;
  }
  for (int64_t j = 0; j < length; ++j) {
    const A difference = pred[j] - target[j];
    out[j] = factor * (static_cast<A>(difference > 0) - static_cast<A>(difference < 0));
  }
}

// make_targets() gives a thread its source of target rows: prefetch(i), and read(set, i), which returns [P].
template <typename A, typename MakeTargets>
void sum_rows(const LossRows& args, const LossSum& sum, const MakeTargets& make_targets, const Parallel& parallel,
              Simd simd) {
  const WeightedRows<A> rows(args);
  const int64_t length = args.length;
  auto* row_losses = static_cast<A*>(sum.row_losses);
  parallel(args.count(), grain_rows(length * static_cast<int64_t>(sizeof(A))), [&](int64_t begin, int64_t end) {
    auto preds = pred_rows<A>(args);
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
        const A error = row_error(args.kind, preds.read(set, i), target, length);
        row_losses[i] = weight * (error / static_cast<A>(length));
      }
    });
  });
  double total = 0;
  vectorised(simd, [&](auto) BIMKERN_INLINE {
    total =
        lane_sum<double>(args.count(), [&](int64_t i) BIMKERN_INLINE { return static_cast<double>(row_losses[i]); });
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
  const A share = *static_cast<const A*>(grad.grad_loss) / (denominator * static_cast<A>(length));
  parallel(args.count(), grain_rows(length * static_cast<int64_t>(sizeof(A))), [&](int64_t begin, int64_t end) {
    auto preds = pred_rows<A>(args);
    auto targets = make_targets();
    NarrowRows<A> slopes(args.pred_dtype, grad.grad_pred, length);
    vectorised(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const A weight = rows.weight(i);
        if (weight == 0 || denominator == 0) {
          slopes.write_zeros(i);
          continue;
        }
        targets.prefetch(rows.next(std::min(i + 1, end - 1), end - 1));
        const A* target = targets.read(set, i);
        row_slopes(args.kind, preds.read(set, i), target, length, weight * share, slopes.begin(i));
        slopes.finish(set, i);
      }
    });
  });
}

}  // namespace bimkern
