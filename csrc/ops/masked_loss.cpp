// CPU kernels of masked_loss.h, parallel over rows and bound by memory.
//
// forward: reads predictions and targets of the rows that count. Each row's error is summed in fixed lanes, the rows'
// errors in float64 by one thread: the same bits for any number of threads on any instruction set.
// backward: reads the same, writes the whole gradient.
#include "ops/masked_loss.h"

#include <vector>

namespace bimkern {
namespace {

// Target rows of any type, as A.
template <typename A>
class WideRows {
 public:
  WideRows(const LossRows& rows, const TargetRows& target)
      : rows_(target.dtype, target.target, rows.tokens, target.image_stride, target.token_stride), wide_(rows.length) {}

  void prefetch(int64_t) const {}  // rows are long runs, which the machine foresees

  // [P]: the row itself, or a copy that lasts until the next.
  template <typename Set>
  BIMKERN_INLINE const A* read(Set set, int64_t i) {
    const A* result = wide_.data();
    rows_.visit(i, [&](const auto* row) BIMKERN_INLINE {
      if constexpr (std::is_same_v<decltype(row), const A*>) {
        result = row;
      } else {
        widen_row(set, row, static_cast<int64_t>(wide_.size()), wide_.data());
      }
    });
    return result;
  }

 private:
  AnyRows rows_;
  std::vector<A> wide_;
};

}  // namespace

void masked_loss(const LossRows& rows, const TargetRows& target, const LossSum& sum, const Parallel& parallel,
                 Simd simd) {
  dispatch_wide(rows.dtype, [&](auto wide) {
    using A = decltype(wide);
    sum_rows<A>(rows, sum, [&] { return WideRows<A>(rows, target); }, parallel, simd);
  });
}

void masked_loss_bwd(const LossRows& rows, const TargetRows& target, const LossGrad& grad, const Parallel& parallel,
                     Simd simd) {
  dispatch_wide(rows.dtype, [&](auto wide) {
    using A = decltype(wide);
    differentiate_rows<A>(rows, grad, [&] { return WideRows<A>(rows, target); }, parallel, simd);
  });
}

}  // namespace bimkern
