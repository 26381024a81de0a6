// The linear layer of match_predict and match_loss against its definition in float64, and the same bits every way to
// run it.
#include "ops/match_linear.h"

#include <cmath>

#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

constexpr int64_t kImages = 40, kRows = 4, kColumns = 6, kTokens = kRows * kColumns, kLength = 5;

// Tokens lie in wider rows; a third of the mask is zero, and so is its first square.
struct Sample {
  int64_t side, width;
  std::vector<float> tokens = normals(kImages * kTokens * (width + 1));
  std::vector<float> weight = normals(kLength * width), bias = normals(kLength), mask;
  MatchLayer layer;

  Sample(int64_t side, int64_t width) : side(side), width(width) {
    for (int64_t i = 0; i < kImages * kTokens; ++i) {
      const int64_t row = i % kTokens / kColumns, column = i % kColumns;
      mask.push_back(i % 3 == 0 || (row < 2 && column < 2) ? 0.0f : 1.0f);
    }
    layer = {{kImages, kRows, kColumns, side, width, kLength},
             DType::kFloat32,
             tokens.data(),
             kTokens * (width + 1),
             width + 1,
             weight.data(),
             bias.data()};
  }

  int64_t cells() const { return layer.grid.all_cells(); }

  // The mean over the tokens of a cell, of what f says of a token of all B * N.
  template <typename F>
  double mean(int64_t cell, const F& f) const {
    const int64_t wide = kColumns / side, each = layer.grid.cells(), image = cell / each;
    const int64_t first = image * kTokens + cell % each / wide * side * kColumns + cell % wide * side;
    double sum = 0;
    for (int64_t i = 0; i < side * side; ++i) {
      sum += f(first + i / side * kColumns + i % side);
    }
    return sum / static_cast<double>(side * side);
  }
  double value(int64_t cell, int64_t d) const {
    return mean(cell, [&](int64_t token) { return tokens[token * (width + 1) + d]; });
  }
  double weight_of(int64_t cell) const {
    return mean(cell, [&](int64_t token) { return mask[token]; });
  }
  double prediction(int64_t cell, int64_t p) const {
    double sum = bias[p];
    for (int64_t d = 0; d < width; ++d) {
      sum += value(cell, d) * weight[p * width + d];
    }
    return sum;
  }
};

bool near(double found, double want, double size) { return std::abs(found - want) <= 4e-6 * (1 + size); }

void test_predictions(int64_t side, int64_t width) {
  const Sample sample(side, width);
  std::vector<float> first, first_means;
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> out(sample.cells() * kLength, -1e30f), means(sample.cells() * width, -1e30f), plain = out;
    match_linear({sample.layer, means.data(), out.data()}, parallel, simd);
    for (int64_t cell = 0; cell < sample.cells(); ++cell) {
      for (int64_t p = 0; p < kLength; ++p) {
        EXPECT(near(out[cell * kLength + p], sample.prediction(cell, p), static_cast<double>(width)));
      }
      for (int64_t d = 0; d < width; ++d) {
        EXPECT(near(means[cell * width + d], sample.value(cell, d), 4));
      }
    }
    match_linear({sample.layer, nullptr, plain.data()}, parallel, simd);  // tokens multiplied where they lie
    EXPECT(plain == out);
    first = first.empty() ? out : first;
    first_means = first_means.empty() ? means : first_means;
    EXPECT(out == first);
    EXPECT(means == first_means);
  });
}

void test_loss(int64_t side, int64_t width, LossKind kind, float denominator) {
  Sample sample(side, width);
  std::vector<float> target = normals(sample.cells() * (kLength + 1));  // rows lie one apart
  const bool squared = kind == LossKind::kL2;
  const double share = denominator == 0 ? 0 : 1 / (static_cast<double>(denominator) * kLength);
  double loss = 0;
  std::vector<double> grad_out, grad_weight(kLength * width), grad_bias(kLength);
  for (int64_t cell = 0; cell < sample.cells(); ++cell) {
    const double weight = sample.weight_of(cell);
    for (int64_t p = 0; p < kLength; ++p) {
      const double error = sample.prediction(cell, p) - target[cell * (kLength + 1) + p];
      loss += share * weight * (squared ? error * error : std::abs(error));
      grad_out.push_back(share * weight * (squared ? 2 * error : std::copysign(1, error)));
      grad_bias[p] += grad_out.back();
      for (int64_t d = 0; d < width; ++d) {
        grad_weight[p * width + d] += grad_out.back() * sample.value(cell, d);
      }
    }
    if (weight == 0) {  // is not read
      std::fill_n(target.begin() + cell * (kLength + 1), kLength, NAN);
    }
  }
  std::vector<float> first;
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> out(sample.cells() * kLength, -1e30f), by_weight(kLength * width, -1e30f), by_bias(kLength);
    std::vector<float> scratch(match_slabs(sample.cells()) * kLength * width, -1e30f), found(1), alone(1);
    MatchLinearLoss args{sample.layer,   kind,
                         target.data(),  sample.layer.grid.cells() * (kLength + 1),
                         kLength + 1,    sample.mask.data(),
                         kTokens,        1,
                         &denominator,   found.data(),
                         out.data(),     by_weight.data(),
                         by_bias.data(), scratch.data()};
    match_linear_loss(args, parallel, simd);
    const auto size = static_cast<double>(width);
    EXPECT(near(found[0], loss, size));
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT(near(out[i], grad_out[i], share * size));
    }
    for (size_t i = 0; i < by_weight.size(); ++i) {
      EXPECT(near(by_weight[i], grad_weight[i], size));
    }
    for (int64_t p = 0; p < kLength; ++p) {
      EXPECT(near(by_bias[p], grad_bias[p], size));
    }
    args.loss = alone.data();
    args.grad_out = args.grad_weight = args.grad_bias = args.scratch = nullptr;
    match_linear_loss(args, parallel, simd);
    EXPECT(alone == found);
    for (const std::vector<float>* part : {&out, &by_weight, &by_bias}) {
      found.insert(found.end(), part->begin(), part->end());
    }
    first = first.empty() ? found : first;
    EXPECT(found == first);
  });
}

// Every third cell has no gradient.
void test_gradients(int64_t side, int64_t width) {
  const Sample sample(side, width);
  const std::vector<float> x = normals(sample.cells() * width);
  std::vector<float> grad = normals(sample.cells() * kLength), first;
  for (int64_t cell = 0; cell < sample.cells(); cell += 3) {
    std::fill_n(grad.begin() + cell * kLength, kLength, 0.0f);
  }
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> by_token(kImages * kTokens * width, -1e30f), by_weight(kLength * width), by_bias(kLength);
    match_linear_bwd({sample.layer.grid, grad.data(), sample.weight.data(), x.data(), DType::kFloat32, by_token.data(),
                      by_weight.data(), by_bias.data()},
                     parallel, simd);
    for (int64_t cell = 0; cell < sample.cells(); ++cell) {
      for (int64_t d = 0; d < width; ++d) {
        double want = 0;
        for (int64_t p = 0; p < kLength; ++p) {
          want += static_cast<double>(grad[cell * kLength + p]) * sample.weight[p * width + d];
        }
        // Each token of the cell has the same.
        const double mean = sample.mean(cell, [&](int64_t token) { return by_token[token * width + d]; });
        const double apart =
            sample.mean(cell, [&](int64_t token) { return std::abs(by_token[token * width + d] - mean); });
        EXPECT(near(mean, want / static_cast<double>(side * side), 4));
        EXPECT(near(apart, 0, 0));
      }
    }
    for (int64_t p = 0; p < kLength; ++p) {
      for (int64_t d = 0; d < width; ++d) {
        double want = 0;
        for (int64_t cell = 0; cell < sample.cells(); ++cell) {
          want += static_cast<double>(grad[cell * kLength + p]) * x[cell * width + d];
        }
        EXPECT(near(by_weight[p * width + d], want, 1000));
      }
      double want = 0;
      for (int64_t cell = 0; cell < sample.cells(); ++cell) {
        want += grad[cell * kLength + p];
      }
      EXPECT(near(by_bias[p], want, 100));
    }
    std::vector<float> found = by_token;
    found.insert(found.end(), by_weight.begin(), by_weight.end());
    first = first.empty() ? found : first;
    EXPECT(found == first);
  });
}

// A gradient too large for the caches, and the same at an address that no register stores to.
void test_large(int64_t side) {
  constexpr int64_t kWide = 1024;
  const MatchGrid grid{60, kRows, kColumns, side, kWide, kLength};
  const std::vector<float> grad = normals(grid.all_cells() * kLength), weight = normals(kLength * kWide);
  const int64_t count = grid.images * grid.tokens() * kWide;
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> storage(count + 32, -1e30f), shifted(count + 32, -1e30f);
    const auto line = [](std::vector<float>& values) {
      return values.data() + (64 - reinterpret_cast<uintptr_t>(values.data()) % 64) / sizeof(float);
    };
    float *aligned = line(storage), *apart = line(shifted) + 1;
    for (float* to : {aligned, apart}) {
      match_linear_bwd({grid, grad.data(), weight.data(), nullptr, DType::kFloat32, to, nullptr, nullptr}, parallel,
                       simd);
    }
    EXPECT(std::equal(aligned, aligned + count, apart));
  });
}

}  // namespace

int main() {
  for (const int64_t side : {1, 2}) {
    for (const int64_t width : {1, 16, 67}) {
      test_predictions(side, width);
      test_gradients(side, width);
      test_loss(side, width, LossKind::kL2, 100);
    }
    test_predictions(side, 300);
    test_large(side);
    test_loss(side, 33, LossKind::kL1, 7);
    test_loss(side, 33, LossKind::kL2, 0);
  }
  return failures() > 0;
}
