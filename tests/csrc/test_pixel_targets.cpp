// pixel_targets against its definition in float64, and with the same bits every way to run it.
#include "ops/pixel_targets.h"

#include <cmath>

#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

struct Grid {
  int64_t images, channels, rows, columns, patch;
  bool channels_last;
};

void test_case(const Grid& grid, bool normalize, bool with_statistics) {
  const int64_t p = grid.patch, C = grid.channels, height = grid.rows * p, width = grid.columns * p;
  std::vector<uint8_t> pixels(grid.images * C * height * width);
  for (uint8_t& pixel : pixels) {
    pixel = static_cast<uint8_t>(random_bits()() % 256);
  }
  std::vector<float> mean, std;
  for (int64_t c = 0; c < C; ++c) {
    mean.push_back(0.25f * static_cast<float>(c));
    std.push_back(0.5f + static_cast<float>(c));
  }
  const int64_t channel_stride = grid.channels_last ? 1 : height * width, column_stride = grid.channels_last ? C : 1;
  const Patches patches{DType::kUInt8,
                        grid.images,
                        C,
                        grid.rows,
                        grid.columns,
                        p,
                        pixels.data(),
                        C * height * width,
                        channel_stride,
                        width * column_stride,
                        column_stride,
                        with_statistics ? mean.data() : nullptr,
                        with_statistics ? std.data() : nullptr,
                        normalize};
  std::vector<double> want;
  for (int64_t i = 0; i < patches.count(); ++i) {
    const int64_t position = i % (grid.rows * grid.columns);
    std::vector<double> values;
    for (int64_t e = 0; e < patches.length(); ++e) {
      const int64_t c = e % C, y = position / grid.columns * p + e / C / p, x = position % grid.columns * p + e / C % p;
      const double pixel = pixels[i / (grid.rows * grid.columns) * patches.image_stride + c * channel_stride +
                                  y * patches.row_stride + x * column_stride] /
                           255.0;
      values.push_back(with_statistics ? (pixel - mean[c]) / std[c] : pixel);
    }
    double average = 0, squares = 0;
    for (const double value : values) {
      average += value / static_cast<double>(values.size());
    }
    for (const double value : values) {
      squares += (value - average) * (value - average);
    }
    const double deviation = std::sqrt(squares / static_cast<double>(values.size() - 1) + kPatchEps);
    for (const double value : values) {
      want.push_back(normalize ? (value - average) / deviation : value);
    }
  }
  std::vector<std::vector<float>> outs;
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> out(want.size(), -1e30f);
    pixel_targets(PixelTargets{DType::kFloat32, patches, out.data()}, parallel, simd);
    outs.push_back(out);
  });
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT(std::abs(outs[0][i] - want[i]) <= 1e-5 * (1 + std::abs(want[i])));
  }
  for (const std::vector<float>& out : outs) {
    EXPECT(out == outs[0]);
  }
}

}  // namespace

int main() {
  for (const Grid& grid : {Grid{2, 3, 2, 3, 16, false},
                           {2, 3, 2, 3, 16, true},
                           {1, 1, 2, 2, 7, false},
                           {1, 3, 2, 2, 14, false},  // pixels that fill no whole number of vectors
                           {2, 3, 1, 2, 3, true},
                           {2, 3, 1, 2, 2, false},
                           {2, 5, 1, 2, 4, false},
                           {0, 3, 2, 2, 4, false},
                           {1, 2, 5, 3, 1, true},
                           {1, 1, 1, 1, 509, false}}) {  // more bytes than a lane of sums holds
    for (const bool normalize : {true, false}) {
      test_case(grid, normalize, true);
      test_case(grid, normalize, false);
    }
  }
  return failures() > 0;
}
