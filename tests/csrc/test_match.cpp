// The stages of match_loss against their definition in float64, and the same bits every way to run them.
#include "ops/match.h"

#include <cmath>
#include <string>

#include "core/error.h"
#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

bool near(const std::vector<float>& got, const std::vector<double>& want, double allowed) {
  bool all = got.size() == want.size();
  for (size_t i = 0; all && i < want.size(); ++i) {
    all = std::abs(got[i] - want[i]) <= allowed * (1 + std::abs(want[i]));
  }
  return all;
}

template <typename T>
void test_masked(DType dtype) {
  const std::vector<T> mask = {1, 0, T(0.25), -1, 0, 9, 0, 9, 0, 0, 0, -1, 0, 9, T(1e-30), 9};  // 2 rows of 4, 2 apart
  std::vector<int64_t> ids(8, -7);
  const int64_t count = match_masked({dtype, 2, 4, mask.data(), 8, 2, ids.data(), false});
  ids.resize(count);
  EXPECT((ids == std::vector<int64_t>{0, 1, 7}));
  EXPECT(match_masked({dtype, 0, 4, mask.data(), 8, 2, ids.data(), false}) == 0);
  ids.assign(8, -7);
  EXPECT(match_masked({dtype, 2, 4, mask.data(), 8, 2, ids.data(), true}) == 8);
  EXPECT((ids == std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
}

void test_rows() {
  const TokenSizes size{1, 0, 3 * 20, 31, 5};
  const std::vector<int64_t> ids = random_ids(size);
  const std::vector<float> tokens = normals(60 * 7);  // rows of 7, of which 5 are read
  const MatchCells cells{ids.data(), 31, 3, 4, 5};
  std::vector<float> gathered, spread(60 * 5, 0.0f);
  for (size_t i = 0; i < ids.size(); ++i) {
    for (int64_t d = 0; d < 5; ++d) {
      gathered.push_back(tokens[ids[i] * 7 + d]);
      spread[ids[i] * 5 + d] = tokens[ids[i] * 7 + d];
    }
  }
  run_every_way([&](const Parallel& parallel, Simd) {
    std::vector<float> out(31 * 5, -1e30f), grad(60 * 5, -1e30f);
    match_rows({DType::kFloat32, cells, 5, tokens.data(), 20 * 7, 7, out.data()}, parallel);
    EXPECT(out == gathered);
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 10}, {10, 11}, {11, 31}}) {
      match_rows_bwd({DType::kFloat32, cells, begin, end, 5, gathered.data() + begin * 5, grad.data()}, parallel);
    }
    EXPECT(grad == spread);
  });
}

void test_norm(int64_t rows, int64_t width) {
  const std::vector<float> x = normals(rows * width), grad = normals(rows * width);
  const std::vector<float> x_bias = normals(width), weight = normals(width), bias = normals(width);
  std::vector<double> want_out, want_grad, want_sums(3 * width);
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<double> row(width), after(width);
    double mean = 0, squares = 0, total = 0, along = 0;
    for (int64_t d = 0; d < width; ++d) {
      row[d] = static_cast<double>(x[i * width + d]) + x_bias[d];
      mean += row[d] / width;
    }
    for (const double value : row) {
      squares += (value - mean) * (value - mean) / width;
    }
    const double scale = 1 / std::sqrt(squares + 1e-6);
    for (int64_t d = 0; d < width; ++d) {
      row[d] = (row[d] - mean) * scale;
      const double z = row[d] * weight[d] + bias[d];
      const double below = 0.5 * std::erfc(-z / std::sqrt(2.0));
      const double slope = below + z * std::exp(-0.5 * z * z) / std::sqrt(2 * std::acos(-1.0));
      want_out.push_back(z * below);
      const double affine = grad[i * width + d] * slope;
      want_sums[d] += affine * row[d];
      want_sums[width + d] += affine;
      after[d] = affine * weight[d];
      total += after[d] / width;
      along += after[d] * row[d] / width;
    }
    for (int64_t d = 0; d < width; ++d) {
      want_grad.push_back((after[d] - total - row[d] * along) * scale);
      want_sums[2 * width + d] += want_grad.back();
    }
  }
  std::vector<float> first_out, first_grad;
  std::vector<double> first_sums;
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> out(x.size()), slope(x.size()), stats(2 * rows), found = grad;
    std::vector<double> sums(3 * width), scratch(match_blocks(rows) * 3 * width, -1e30);
    match_norm({DType::kFloat32, rows, width, 1e-6, x.data(), x_bias.data(), weight.data(), bias.data(), out.data(),
                slope.data(), stats.data()},
               parallel, simd);
    match_norm_bwd({DType::kFloat32, rows, width, x.data(), x_bias.data(), weight.data(), slope.data(), stats.data(),
                    found.data(), sums.data(), scratch.data()},
                   parallel, simd);
    EXPECT(near(out, want_out, 1e-4));
    EXPECT(near(found, want_grad, 1e-3));
    EXPECT(near({sums.begin(), sums.end()}, want_sums, 1e-3));
    if (first_out.empty()) {
      first_out = out, first_grad = found, first_sums = sums;
    }
    EXPECT(out == first_out);
    EXPECT(found == first_grad);
    EXPECT(sums == first_sums);
  });
}

void test_error(int64_t side, LossKind kind) {
  constexpr int64_t kRows = 3, kColumns = 4, kLength = 5, kMasked = 9;
  const int64_t squares = side == 4 ? 4 : 1, cells_a_row = side == 1 ? 1 : 4, width = 32;
  const std::vector<int64_t> ids = random_ids({1, 0, 2 * kRows * kColumns, kMasked, 1});
  const std::vector<float> weight = normals(2 * kRows * kColumns), bias = normals(width);
  const std::vector<float> target = normals(2 * kRows * kColumns * side * side * kLength);
  const std::vector<float> pred = normals(kMasked * squares * width);
  std::vector<double> want(pred.size()), sums(1 + width);
  for (size_t i = 0; i < pred.size(); ++i) {
    const int64_t d = i % width, q = i / width % squares, id = ids[i / width / squares];
    const int64_t position = d / kLength;  // of the cell in its 2x2 square
    if (position >= cells_a_row) {
      continue;
    }
    const int64_t image = id / (kRows * kColumns), cell = id % (kRows * kColumns);
    const int64_t half = side == 4 ? 2 : 0;
    const int64_t y = cell / kColumns * side + q / 2 * half + position / 2;
    const int64_t x = cell % kColumns * side + q % 2 * half + position % 2;
    const int64_t at = (image * kRows * side + y) * kColumns * side + x;
    const double error = static_cast<double>(pred[i]) + bias[d] - target[at * kLength + d % kLength];
    const bool squared = kind == LossKind::kL2;
    want[i] = weight[id] * (squared ? error : (error > 0) - (error < 0));
    sums[0] += want[i] * error;
    sums[1 + d] += want[i];
  }
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> found = pred;
    std::vector<double> got(1 + width), scratch(match_blocks(kMasked) * (1 + width), -1e30);
    match_error({DType::kFloat32,
                 kind,
                 {ids.data(), kMasked, 2, kRows, kColumns},
                 side,
                 kLength,
                 width,
                 weight.data(),
                 kRows * kColumns,
                 1,
                 target.data(),
                 kRows * kColumns * side * side * kLength,
                 kLength,
                 bias.data(),
                 found.data(),
                 got.data(),
                 scratch.data()},
                parallel, simd);
    EXPECT(near(found, want, 1e-5));
    EXPECT(near({got.begin(), got.end()}, sums, 1e-4));
  });
}

void test_errors() {
  const std::vector<int64_t> ids = {0, 4};
  std::vector<float> rows(8);
  std::string said;
  try {
    match_rows({DType::kFloat32, {ids.data(), 2, 2, 1, 2}, 2, rows.data(), 4, 2, rows.data()}, serial());
  } catch (const Error& error) {
    said = error.what();
  }
  EXPECT(said == "match_rows: cells must hold ids in [0, N=4), got 4 in image 0");
}

}  // namespace

int main() {
  test_masked<float>(DType::kFloat32);
  test_masked<double>(DType::kFloat64);
  test_rows();
  for (const int64_t width : {1, 15, 16, 17, 128}) {
    test_norm(67, width);
  }
  test_norm(0, 16);
  for (const int64_t side : {1, 2, 4}) {
    test_error(side, LossKind::kL2);
    test_error(side, LossKind::kL1);
  }
  test_errors();
  return failures() > 0;
}
