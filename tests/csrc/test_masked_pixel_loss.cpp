// masked_loss against patches is that against their pixel_targets, to the last bit, every way to run them.
#include "expect.h"
#include "ops/masked_loss.h"
#include "sample.h"

using namespace bimkern;

namespace {

void test_case(int64_t images, int64_t channels, int64_t rows, int64_t columns, int64_t patch, LossKind kind) {
  const int64_t height = rows * patch, width = columns * patch, tokens = rows * columns;
  const int64_t length = channels * patch * patch;
  const std::vector<float> pixels = normals(images * channels * height * width),
                           pred = normals(images * tokens * length);
  const Patches patches{DType::kFloat32,           images,         channels, rows, columns, patch,   pixels.data(),
                        channels * height * width, height * width, width,    1,    nullptr, nullptr, true};
  std::vector<float> weight, target(pred.size());
  for (int64_t i = 0; i < images * tokens; ++i) {
    weight.push_back(static_cast<float>(random_bits()() % 3) / 2);
  }
  const float denominator = 5, grad_loss = 2;
  const LossRows loss_rows{DType::kFloat32, DType::kFloat32, kind,          images, tokens, length,      pred.data(),
                           tokens * length, length,          weight.data(), tokens, 1,      &denominator};
  pixel_targets(PixelTargets{DType::kFloat32, patches, target.data()}, serial(), Simd::kBaseline);
  const TargetRows targets{DType::kFloat32, target.data(), tokens * length, length};
  float want = -1;
  std::vector<float> row_losses(weight.size()), want_grad(pred.size(), -1);
  masked_loss(loss_rows, targets, LossSum{&want, row_losses.data()}, serial(), Simd::kBaseline);
  masked_loss_bwd(loss_rows, targets, LossGrad{&grad_loss, want_grad.data()}, serial(), Simd::kBaseline);
  run_every_way([&](const Parallel& parallel, Simd simd) {
    float loss = -1;
    std::vector<float> scratch(weight.size()), grad(pred.size(), -1);
    masked_loss(loss_rows, patches, LossSum{&loss, scratch.data()}, parallel, simd);
    masked_loss_bwd(loss_rows, patches, LossGrad{&grad_loss, grad.data()}, parallel, simd);
    EXPECT(loss == want);
    EXPECT(grad == want_grad);
  });
}

}  // namespace

int main() {
  for (const LossKind kind : {LossKind::kL2, LossKind::kL1}) {
    test_case(2, 3, 3, 2, 16, kind);
    test_case(3, 2, 2, 5, 7, kind);
    test_case(1, 1, 1, 1, 2, kind);
    test_case(0, 3, 2, 2, 4, kind);
  }
  return failures() > 0;
}
