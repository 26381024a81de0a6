// The stages of match_predict against their definition in float64, and the same bits every way to run them.
#include "ops/match_predict.h"

#include <cmath>

#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

void test_pool(int64_t width) {
  constexpr int64_t kImages = 2, kRows = 4, kColumns = 6, kCells = 6;
  const std::vector<float> tokens = normals(kImages * kRows * kColumns * (width + 1));  // rows lie one apart
  std::vector<float> weight(kImages * kCells, 0.25f), want;
  weight[3] = 0;
  for (int64_t i = 0; i < kImages * kCells; ++i) {
    const int64_t cell = i % kCells, token = cell / 3 * 2 * kColumns + cell % 3 * 2;
    const float* first = tokens.data() + (i / kCells * kRows * kColumns + token) * (width + 1);
    for (int64_t d = 0; d < width; ++d) {
      const float* x = first + d;
      const float sum = x[0] + x[width + 1] + x[kColumns * (width + 1)] + x[(kColumns + 1) * (width + 1)];
      want.push_back(weight[i] == 0 ? 0 : sum * 0.25f);
    }
  }
  const std::vector<float> grad = normals(kImages * kCells * width);
  std::vector<float> want_grad(kImages * kRows * kColumns * width);
  for (int64_t i = 0; i < kImages * kRows * kColumns; ++i) {
    const int64_t token = i % (kRows * kColumns), cell = token / kColumns / 2 * 3 + token % kColumns / 2;
    for (int64_t d = 0; d < width; ++d) {
      want_grad[i * width + d] = grad[(i / (kRows * kColumns) * kCells + cell) * width + d] * 0.25f;
    }
  }
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> out(want.size(), -1e30f), found(want_grad.size(), -1e30f);
    match_pool({DType::kFloat32, DType::kFloat32, kImages, kRows, kColumns, width, weight.data(), tokens.data(),
                kRows * kColumns * (width + 1), width + 1, out.data()},
               parallel, simd);
    match_pool_bwd({DType::kFloat32, DType::kFloat32, kImages, kRows, kColumns, width, grad.data(), found.data()},
                   parallel, simd);
    EXPECT(out == want);
    EXPECT(found == want_grad);
  });
}

// left and out lie in wider rows, or left is transposed.
void test_product(int64_t rows, int64_t depth, int64_t columns, bool transposed) {
  const int64_t row_stride = transposed ? 1 : depth + 2, depth_stride = transposed ? rows : 1;
  const std::vector<float> left = normals(rows * (depth + 2)), right = normals(depth * columns);
  const std::vector<float> bias = normals(columns), before = normals(rows * (columns + 1));
  std::vector<float> first, first_added;
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> out = before, added = before;
    MatchProduct args{rows,         depth,   columns,     left.data(), row_stride, depth_stride,
                      right.data(), columns, bias.data(), false,       out.data(), columns + 1};
    match_product(args, parallel, simd);
    args.bias = nullptr;
    args.add = true;
    args.out = added.data();
    match_product(args, parallel, simd);
    for (int64_t r = 0; r < rows; ++r) {
      EXPECT(out[r * (columns + 1) + columns] == before[r * (columns + 1) + columns]);
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t at = r * (columns + 1) + c;
        double sum = 0, size = 1;
        for (int64_t k = 0; k < depth; ++k) {
          const double term = static_cast<double>(left[r * row_stride + k * depth_stride]) * right[k * columns + c];
          sum += term;
          size += std::abs(term);
        }
        EXPECT(std::abs(out[at] - (sum + bias[c])) <= 1e-6 * size * 4);
        EXPECT(std::abs(added[at] - (sum + before[at])) <= 1e-6 * size * 4);
      }
    }
    if (first.empty()) {
      first = out, first_added = added;
    }
    EXPECT(out == first);
    EXPECT(added == first_added);
  });
}

}  // namespace

int main() {
  for (const int64_t width : {1, 16, 67}) {
    test_pool(width);
  }
  for (const int64_t columns : {1, 7, 16, 27, 64, 83}) {
    test_product(50, 5, columns, false);
    test_product(5, 300, columns, true);
  }
  test_product(0, 3, 4, false);
  test_product(3, 0, 4, false);
  return failures() > 0;
}
