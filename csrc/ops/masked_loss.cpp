// CPU kernels of masked_loss.h, parallel over rows and bound by memory.
//
// forward: reads predictions and targets of the rows that count, or the pixels of their patches. Each row's error is
// summed in fixed lanes, the rows' errors in float64 by one thread: the same bits for any number of threads on any
// instruction set.
// backward: reads the same, writes the whole gradient.
#include "ops/masked_loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "core/rows.h"
#include "ops/patch_reader.h"

namespace bimkern {
namespace {

// Where row i of [B, N, ...] starts; most often without a division, which takes as long as a short row.
int64_t row_offset(int64_t i, int64_t tokens, int64_t image_stride, int64_t token_stride) {
  return image_stride == tokens * token_stride ? i * token_stride
                                               : i / tokens * image_stride + i % tokens * token_stride;
}

// Asks for a row, into the second-level cache as pixels.h does.
BIMKERN_INLINE inline void prefetch_row(const void* rows, int64_t at, int64_t length, DType dtype) {
  constexpr int64_t kLine = 64;
  const char* row = static_cast<const char*>(rows) + at * bytes_of(dtype);
  for (int64_t byte = 0; byte < length * bytes_of(dtype); byte += kLine) {
    __builtin_prefetch(row + byte, 0, 2);
  }
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

// Prediction rows: read where they lie, in a loop of their own type, if they compute in A, and else as copies.
template <typename A>
class PredRows {
 public:
  explicit PredRows(const LossRows& rows)
      : dtype_(rows.pred_dtype),
        rows_(rows.pred),
        tokens_(rows.tokens),
        image_stride_(rows.pred_image_stride),
        token_stride_(rows.pred_token_stride),
        length_(rows.length),
        in_place_(computes_in<A>(dtype_)),
        copy_(in_place_ ? 0 : rows.length) {}

  bool in_place() const { return in_place_; }

  BIMKERN_INLINE void prefetch(int64_t i) const {
    prefetch_row(rows_, row_offset(i, tokens_, image_stride_, token_stride_), length_, dtype_);
  }

  // Calls f with row i, [P].
  template <typename F>
  BIMKERN_INLINE void visit(int64_t i, const F& f) {
    const int64_t at = row_offset(i, tokens_, image_stride_, token_stride_);
    if (in_place_) {
      return visit_row<A>(dtype_, rows_, at, f);
    }
    convert_row(dtype_, rows_, at, static_cast<int64_t>(copy_.size()), copy_.data());
    f(static_cast<const A*>(copy_.data()));
  }

 private:
  DType dtype_;
  const void* rows_;
  int64_t tokens_;
  int64_t image_stride_;
  int64_t token_stride_;
  int64_t length_;
  bool in_place_;
  std::vector<A> copy_;
};

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

// Where a thread gets target rows from, as A.
template <typename A>
class TargetReader {
 public:
  TargetReader(const LossRows& rows, const Targets& targets) : tokens_(rows.tokens), copy_(rows.length) {
    if (const auto* patches = std::get_if<Patches>(&targets)) {
      patches_.emplace(*patches);
      return;
    }
    rows_ = std::get<TargetRows>(targets);
    in_place_ = bytes_of(rows_.dtype) == sizeof(A);
  }

  // Whether the machine foresees which rows come next: it does along short ones, whose runs it reads whole.
  bool foreseen() const { return !patches_ && static_cast<int64_t>(copy_.size() * sizeof(A)) < kLongBytes; }

  BIMKERN_INLINE void prefetch(int64_t i) const {
    if (!patches_) {
      prefetch_row(rows_.target, row_offset(i, tokens_, rows_.image_stride, rows_.token_stride), copy_.size(),
                   rows_.dtype);
    }
  }

  // [P]: row i itself, or a copy that lasts until the next, whose number is `next`.
  template <Simd kSimd>
  BIMKERN_INLINE const A* read(SimdTag<kSimd> set, int64_t i, int64_t next) {
    if (in_place_) {
      return static_cast<const A*>(rows_.target) + row_offset(i, tokens_, rows_.image_stride, rows_.token_stride);
    }
    if (patches_) {
      read_patches(*patches_, kSimd, i, i + 1, next, copy_.data());
    } else {
      const int64_t at = row_offset(i, tokens_, rows_.image_stride, rows_.token_stride);
      widen_row(set, rows_.dtype, rows_.target, at, static_cast<int64_t>(copy_.size()), copy_.data());
    }
    return copy_.data();
  }

 private:
  static constexpr int64_t kLongBytes = 2048;

  TargetRows rows_{};
  bool in_place_ = false;
  std::optional<PatchReader<A>> patches_;
  int64_t tokens_;
  std::vector<A> copy_;
};

// Target row i; asks for what comes next, before end, where it must be asked for.
template <typename Set, typename A>
BIMKERN_INLINE inline const A* read_target(Set set, const WeightedRows<A>& rows, const PredRows<A>& preds,
                                           TargetReader<A>& targets, int64_t i, int64_t end) {
  int64_t next = i;
  if (!targets.foreseen()) {
    next = rows.next(std::min(i + 1, end - 1), end - 1);
    preds.prefetch(next);
    targets.prefetch(next);
  }
  return targets.read(set, i, next);
}

template <typename A>
void sum_rows(const LossRows& args, const Targets& targets, const LossSum& sum, const Parallel& parallel, Simd simd) {
  const WeightedRows<A> rows(args);
  const int64_t length = args.length;
  auto* row_losses = static_cast<A*>(sum.row_losses);
  parallel(args.count(), grain_rows(length * static_cast<int64_t>(sizeof(A))), [&](int64_t begin, int64_t end) {
    PredRows<A> preds(args);
    TargetReader<A> reader(args, targets);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const A weight = rows.weight(i);
        if (weight == 0) {
          row_losses[i] = 0;
          continue;
        }
        const A* target = read_target(set, rows, preds, reader, i, end);
        preds.visit(i, [&](const auto* pred) BIMKERN_INLINE {
          row_losses[i] = weight * (row_error(set, args.kind, pred, target, length) / static_cast<A>(length));
        });
      }
    });
  });
  double total = 0;
  vectorized(simd, [&](auto) BIMKERN_INLINE {
    total =
        lane_sum<double>(args.count(), [=](int64_t i) BIMKERN_INLINE { return static_cast<double>(row_losses[i]); });
  });
  const A denominator = rows.denominator();
  *static_cast<A*>(sum.loss) = denominator == 0 ? A{0} : static_cast<A>(total / static_cast<double>(denominator));
}

template <typename A>
void differentiate_rows(const LossRows& args, const Targets& targets, const LossGrad& grad, const Parallel& parallel,
                        Simd simd) {
  const WeightedRows<A> rows(args);
  const int64_t length = args.length;
  const A denominator = rows.denominator();
  const int64_t row_bytes = length * bytes_of(args.pred_dtype);
  const A share = *static_cast<const A*>(grad.grad_loss) / (denominator * static_cast<A>(length));
  parallel(args.count(), grain_rows(length * static_cast<int64_t>(sizeof(A))), [&](int64_t begin, int64_t end) {
    PredRows<A> preds(args);
    TargetReader<A> reader(args, targets);
    std::vector<A> slopes(preds.in_place() ? 0 : length);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t i = begin; i < end; ++i) {
        const A weight = rows.weight(i);
        if (weight == 0 || denominator == 0) {
          std::memset(static_cast<char*>(grad.grad_pred) + i * row_bytes, 0, row_bytes);
          continue;
        }
        const A* target = read_target(set, rows, preds, reader, i, end);
        preds.visit(i, [&](const auto* pred) BIMKERN_INLINE {
          using T = std::remove_const_t<std::remove_pointer_t<decltype(pred)>>;
          T* out = static_cast<T*>(preds.in_place() ? grad.grad_pred : slopes.data());
          row_slopes(set, args.kind, pred, target, length, weight * share, out + (preds.in_place() ? i * length : 0));
        });
        if (!preds.in_place()) {
          convert_row_back(slopes.data(), length, args.pred_dtype, grad.grad_pred, i * length);
        }
      }
    });
  });
}

}  // namespace

void masked_loss(const LossRows& rows, const Targets& targets, const LossSum& sum, const Parallel& parallel,
                 Simd simd) {
  dispatch_wide(rows.dtype, [&](auto wide) { sum_rows<decltype(wide)>(rows, targets, sum, parallel, simd); });
}

void masked_loss_bwd(const LossRows& rows, const Targets& targets, const LossGrad& grad, const Parallel& parallel,
                     Simd simd) {
  dispatch_wide(rows.dtype,
                [&](auto wide) { differentiate_rows<decltype(wide)>(rows, targets, grad, parallel, simd); });
}

}  // namespace bimkern
