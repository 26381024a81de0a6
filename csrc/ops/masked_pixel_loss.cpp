// CPU kernels of masked_pixel_loss.h: those of masked_loss.cpp, whose target rows a PatchReader makes in the
// first-level cache. Reads predictions and pixels of the patches that count.
#include "ops/masked_pixel_loss.h"

#include "ops/patch_reader.h"

namespace bimkern {
namespace {

template <typename A>
class PixelRows {
 public:
  explicit PixelRows(const Patches& patches) : reader_(patches), row_(patches.length()) {}

  BIMKERN_INLINE void prefetch(int64_t i) const { reader_.prefetch(i); }

  template <Simd kSimd>
  BIMKERN_INLINE const A* read(SimdTag<kSimd>, int64_t i) {
    read_patch(reader_, kSimd, i, row_.data());
    return row_.data();
  }

 private:
  PatchReader<A> reader_;
  std::vector<A> row_;
};

}  // namespace

void masked_pixel_loss(const LossRows& rows, const Patches& patches, const LossSum& sum, const Parallel& parallel,
                       Simd simd) {
  dispatch_wide(rows.dtype, [&](auto wide) {
    using A = decltype(wide);
    sum_rows<A>(rows, sum, [&] { return PixelRows<A>(patches); }, parallel, simd);
  });
}

void masked_pixel_loss_bwd(const LossRows& rows, const Patches& patches, const LossGrad& grad, const Parallel& parallel,
                           Simd simd) {
  dispatch_wide(rows.dtype, [&](auto wide) {
    using A = decltype(wide);
    differentiate_rows<A>(rows, grad, [&] { return PixelRows<A>(patches); }, parallel, simd);
  });
}

}  // namespace bimkern
