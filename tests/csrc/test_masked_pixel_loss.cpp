// masked_loss against patches is that against their pixel_targets, to the last bit, every way to run them, of
// predictions and pixels of any type.
#include <cstring>
#include <type_traits>

#include "expect.h"
#include "ops/masked_loss.h"
#include "sample.h"

using namespace bimkern;

namespace {

struct Grid {
  int64_t images, channels, rows, columns, patch;
};

template <typename T>
std::vector<T> random_values(int64_t count) {
  std::vector<T> values;
  for (const float value : normals(count)) {
    if constexpr (std::is_same_v<T, uint8_t>) {
      values.push_back(static_cast<uint8_t>(random_bits()() % 256));
    } else {
      values.push_back(Arithmetic<T>::store(static_cast<typename Arithmetic<T>::type>(value)));
    }
  }
  return values;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Computed in W. Statistics of the channels, or none.
template <typename Pred, typename Pixel, typename W>
void test_case(const Grid& grid, DType pred_dtype, DType pixel_dtype, DType dtype, LossKind kind, bool statistics) {
  const int64_t height = grid.rows * grid.patch, width = grid.columns * grid.patch, tokens = grid.rows * grid.columns;
  const int64_t length = grid.channels * grid.patch * grid.patch;
  const auto pixels = random_values<Pixel>(grid.images * grid.channels * height * width);
  const auto pred = random_values<Pred>(grid.images * tokens * length);
  std::vector<W> weight, mean, std, target(pred.size());
  for (int64_t c = 0; c < grid.channels; ++c) {
    mean.push_back(W{0.25} * static_cast<W>(c));
    std.push_back(W{0.5} + static_cast<W>(c));
  }
  for (int64_t i = 0; i < grid.images * tokens; ++i) {
    weight.push_back(static_cast<W>(random_bits()() % 3) / 2);
  }
  const Patches patches{pixel_dtype,
                        grid.images,
                        grid.channels,
                        grid.rows,
                        grid.columns,
                        grid.patch,
                        pixels.data(),
                        grid.channels * height * width,
                        height * width,
                        width,
                        1,
                        statistics ? mean.data() : nullptr,
                        statistics ? std.data() : nullptr,
                        true};
  const W denominator = 5, grad_loss = 2;
  const LossRows loss_rows{pred_dtype,      dtype,  kind,          grid.images, tokens, length,      pred.data(),
                           tokens * length, length, weight.data(), tokens,      1,      &denominator};
  pixel_targets(PixelTargets{dtype, patches, target.data()}, serial(), Simd::kBaseline);
  const TargetRows targets{dtype, target.data(), tokens * length, length};
  W want = -1;
  std::vector<W> row_losses(weight.size());
  std::vector<Pred> want_grad(pred.size(), Arithmetic<Pred>::store(-1));
  masked_loss(loss_rows, targets, LossSum{&want, row_losses.data()}, serial(), Simd::kBaseline);
  masked_loss_bwd(loss_rows, targets, LossGrad{&grad_loss, want_grad.data()}, serial(), Simd::kBaseline);
  run_every_way([&](const Parallel& parallel, Simd simd) {
    W loss = -1;
    std::vector<W> scratch(weight.size());
    std::vector<Pred> grad(pred.size(), Arithmetic<Pred>::store(-1));
    masked_loss(loss_rows, patches, LossSum{&loss, scratch.data()}, parallel, simd);
    masked_loss_bwd(loss_rows, patches, LossGrad{&grad_loss, grad.data()}, parallel, simd);
    EXPECT(loss == want);
    EXPECT(same_bits(grad, want_grad));
  });
}

void test_every_pair_of_dtypes(const Grid& grid, LossKind kind) {
  constexpr DType kFloats[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64};
  constexpr DType kPixels[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64, DType::kUInt8};
  for (const DType pred : kFloats) {
    for (const DType pixel : kPixels) {
      dispatch(pred, [&](auto p) {
        dispatch_pixels(pixel, [&](auto x) {
          for (const bool statistics : {true, false}) {
            test_case<decltype(p), decltype(x), double>(grid, pred, pixel, DType::kFloat64, kind, statistics);
            if (pixel != DType::kFloat64) {  // with which all is computed in float64
              test_case<decltype(p), decltype(x), float>(grid, pred, pixel, DType::kFloat32, kind, statistics);
            }
          }
        });
      });
    }
  }
}

}  // namespace

int main() {
  for (const LossKind kind : {LossKind::kL2, LossKind::kL1}) {
    for (const Grid& grid : {Grid{2, 3, 3, 2, 16}, {3, 2, 2, 5, 7}, {1, 1, 1, 1, 2}, {0, 3, 2, 2, 4}}) {
      test_every_pair_of_dtypes(grid, kind);
    }
  }
  return failures() > 0;
}
