// masked_loss and its gradient against their definition in float64, and with the same bits every way to run them.
#include "ops/masked_loss.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "core/rows.h"
#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

struct Sizes {
  int64_t images, tokens, length;
};

void test_case(const Sizes& size, LossKind kind, float denominator) {
  const int64_t count = size.images * size.tokens;
  std::vector<float> pred = normals(count * size.length), target = normals(count * size.length), weight;
  for (int64_t i = 0; i < count; ++i) {
    weight.push_back(static_cast<float>(random_bits()() % 5) / 4);
    if (weight[i] == 0) {  // what does not count must not be read
      std::fill_n(pred.begin() + i * size.length, size.length, std::numeric_limits<float>::quiet_NaN());
      std::fill_n(target.begin() + i * size.length, size.length, std::numeric_limits<float>::infinity());
    }
  }
  const float grad_loss = 3;
  const double factor = denominator == 0 ? 0 : grad_loss / (static_cast<double>(denominator) * size.length);
  double want = 0;
  std::vector<double> want_grad(pred.size());
  for (size_t i = 0; i < pred.size(); ++i) {
    const double w = weight[i / size.length], difference = static_cast<double>(pred[i]) - target[i];
    if (w == 0 || denominator == 0) {
      continue;
    }
    const bool squared = kind == LossKind::kL2;
    want += w * (squared ? difference * difference : std::abs(difference)) / size.length / denominator;
    want_grad[i] = factor * w * (squared ? 2 * difference : (difference > 0) - (difference < 0));
  }
  const LossRows rows{DType::kFloat32, DType::kFloat32,           kind,        size.images,   size.tokens, size.length,
                      pred.data(),     size.tokens * size.length, size.length, weight.data(), size.tokens, 1,
                      &denominator};
  const TargetRows targets{DType::kFloat32, target.data(), size.tokens * size.length, size.length};
  std::vector<float> losses;
  std::vector<std::vector<float>> grads;
  run_every_way([&](const Parallel& parallel, Simd simd) {
    float loss = -1;
    std::vector<float> row_losses(count, -1), grad(pred.size(), -1);
    masked_loss(rows, targets, LossSum{&loss, row_losses.data()}, parallel, simd);
    masked_loss_bwd(rows, targets, LossGrad{&grad_loss, grad.data()}, parallel, simd);
    losses.push_back(loss);
    grads.push_back(grad);
  });
  EXPECT(std::abs(losses[0] - want) <= 1e-6 * want);
  for (size_t i = 0; i < pred.size(); ++i) {
    EXPECT(std::abs(grads[0][i] - want_grad[i]) <= 1e-6 * std::abs(want_grad[i]));
  }
  for (size_t way = 1; way < losses.size(); ++way) {
    EXPECT(losses[way] == losses[0]);
    EXPECT(grads[way] == grads[0]);
  }
}

// What rounding to a type changes at most: relative, and absolute where numbers lie no denser.
template <typename T>
constexpr double kRounding = std::is_same_v<T, bfloat16>  ? 0x1p-8
                             : std::is_same_v<T, float16> ? 0x1p-11
                             : std::is_same_v<T, float>   ? 0x1p-24
                                                          : 0;
template <typename T>
constexpr double kLeast = std::is_same_v<T, float16> ? 0x1p-25 : 0;

template <typename T>
std::vector<T> stored_normals(int64_t count) {
  std::vector<T> values;
  for (const float value : normals(count)) {
    values.push_back(Arithmetic<T>::store(static_cast<typename Arithmetic<T>::type>(value)));
  }
  return values;
}

// Predictions and targets of any two types, computed in W: no more is lost than by rounding the result.
template <typename Pred, typename Target, typename W>
void test_dtypes(DType pred_dtype, DType target_dtype, DType dtype, LossKind kind) {
  constexpr int64_t kCount = 5, kLength = 37;
  constexpr double kWide = std::is_same_v<W, double> ? 1e-14 : 1e-6;
  const auto pred = stored_normals<Pred>(kCount * kLength);
  const auto target = stored_normals<Target>(kCount * kLength);
  const std::vector<W> weight{1, 0, W{0.5}, W{0.25}, 1};
  const W denominator = 2.75, grad_loss = 3;
  double want = 0;
  std::vector<double> want_grad(pred.size());
  for (size_t i = 0; i < pred.size(); ++i) {
    const double w = weight[i / kLength] / double{denominator} / kLength;
    const double difference = double{Arithmetic<Pred>::load(pred[i])} - double{Arithmetic<Target>::load(target[i])};
    const bool squared = kind == LossKind::kL2;
    want += w * (squared ? difference * difference : std::abs(difference));
    want_grad[i] = grad_loss * w * (squared ? 2 * difference : (difference > 0) - (difference < 0));
  }
  const LossRows rows{pred_dtype,       dtype,   kind,          1,      kCount, kLength,     pred.data(),
                      kCount * kLength, kLength, weight.data(), kCount, 1,      &denominator};
  const TargetRows targets{target_dtype, target.data(), kCount * kLength, kLength};
  run_every_way([&](const Parallel& parallel, Simd simd) {
    W loss = -1;
    std::vector<W> row_losses(kCount, -1);
    std::vector<Pred> grad(pred.size());
    masked_loss(rows, targets, LossSum{&loss, row_losses.data()}, parallel, simd);
    masked_loss_bwd(rows, targets, LossGrad{&grad_loss, grad.data()}, parallel, simd);
    EXPECT(std::abs(loss - want) <= kWide * want);
    int64_t wrong = 0;
    for (size_t i = 0; i < grad.size(); ++i) {
      const double error = std::abs(Arithmetic<Pred>::load(grad[i]) - want_grad[i]);
      wrong += !(error <= (kWide + kRounding<Pred>)*std::abs(want_grad[i]) + kLeast<Pred>);
    }
    EXPECT(wrong == 0);
  });
}

void test_every_pair_of_dtypes(LossKind kind) {
  constexpr DType kFloats[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64};
  for (const DType pred : kFloats) {
    for (const DType target : kFloats) {
      dispatch(pred, [&](auto p) {
        dispatch(target, [&](auto t) {
          test_dtypes<decltype(p), decltype(t), double>(pred, target, DType::kFloat64, kind);
          if (target != DType::kFloat64) {  // with which all is computed in float64
            test_dtypes<decltype(p), decltype(t), float>(pred, target, DType::kFloat32, kind);
          }
        });
      });
    }
  }
}

void test_lane_sum() {
  for (const int64_t count : {0, 1, 31, 32, 33, 64, 100}) {
    const auto sum = lane_sum<double>(count, [](int64_t i) BIMKERN_INLINE { return static_cast<double>(i + 1); });
    EXPECT(sum == static_cast<double>(count * (count + 1) / 2));
  }
}

}  // namespace

int main() {
  test_lane_sum();
  test_every_pair_of_dtypes(LossKind::kL2);
  test_every_pair_of_dtypes(LossKind::kL1);
  for (const Sizes& size : {Sizes{2, 49, 96}, {3, 7, 1}, {1, 1, 27}, {2, 5, 768}, {0, 4, 8}, {4, 0, 8}, {9, 301, 5}}) {
    for (const LossKind kind : {LossKind::kL2, LossKind::kL1}) {
      test_case(size, kind, 12.5f);
      test_case(size, kind, 0.0f);
    }
  }
  return failures() > 0;
}
