// hog against its definition by an arc tangent, every way to run it, and the bin of every gradient of 8-bit pixels.
#include "ops/hog.h"

#include <cmath>

#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr float kPoison = -1e30f;
constexpr double kNearBoundary = 1e-5;  // of a bin's width: closer, rounding decides the bin of a biased gradient

// floor(atan2(gx, gy) / pi * bins) mod bins; an angle that lies on a boundary, but for rounding, has reached it.
int32_t bin_by_angle(double gx, double gy, int32_t bins) {
  const double angle = std::atan2(gx, gy) / kPi * bins;
  const double nearest = std::nearbyint(angle);
  const auto reached = static_cast<int32_t>(std::abs(angle - nearest) < 1e-9 ? nearest : std::floor(angle));
  return ((reached % bins) + bins) % bins;
}

// Sums of 8-bit Sobel differences reach 4 * 255. Opposite gradients share a bin, which half of the plane tests.
void test_every_gradient_of_8_bit_pixels() {
  constexpr int kReach = 1020;
  for (const int32_t bins : {1, 2, 3, 4, 7, 8, 9, 12, 16, 18, 20, 35, 36}) {
    const HogBoundaries boundaries = hog_boundaries(bins);
    int64_t wrong = 0;
    dispatch_quads(bins, [&](auto quads) {
      for (int gx = 0; gx <= kReach; ++gx) {
        for (int gy = -kReach; gy <= kReach; ++gy) {
          const int32_t bin = hog_bin<decltype(quads)::value>(gx, gy, boundaries);
          const int32_t opposite = hog_bin<decltype(quads)::value>(-gx, -gy, boundaries);
          wrong += gx == 0 && gy == 0 ? bin < 0 || bin >= bins : bin != bin_by_angle(gx, gy, bins) || opposite != bin;
        }
      }
    });
    EXPECT(wrong == 0);
  }
}

void test_ramps() {
  const int ramps[][4] = {{-8, 0, 4, 9},  {8, 0, 4, 9},   {0, -8, 0, 0},   {0, 8, 0, 0},
                          {-8, -8, 2, 4}, {-8, 8, 6, 13}, {-16, -8, 3, 6}, {-8, -16, 1, 2}};
  for (const auto& [gx, gy, bin9, bin18] : ramps) {
    EXPECT(hog_bin<1>(gx, gy, hog_boundaries(9)) == bin9);
    EXPECT(hog_bin<2>(gx, gy, hog_boundaries(18)) == bin18);
  }
}

void test_window() {
  float weights[16];
  hog_window(16, weights);
  EXPECT(std::abs(weights[0] * weights[0] - 0.00221355) < 5e-9);
  EXPECT(std::abs(weights[0] * weights[7] - 0.00342841) < 5e-9);
  EXPECT(std::abs(weights[7] * weights[7] - 0.00531002) < 5e-9);
}

struct Case {
  int64_t images, channels, height, width;
  int32_t bins, window;
  std::vector<HogLevel> levels;
};

int64_t reflected(int64_t at, int64_t count) { return at < 0 ? -at : at < count ? at : 2 * count - 2 - at; }

bool near_boundary(double gx, double gy, int32_t bins) {
  const double angle = std::atan2(gx, gy) / kPi * bins;
  return std::abs(angle - std::nearbyint(angle)) < kNearBoundary;
}

// The normalized histograms of one cell and channel; none where rounding decides a bin.
std::vector<double> histogram(const Case& c, const HogLevel& level, const std::vector<float>& weights,
                              const std::vector<uint8_t>& plane, int64_t row, int64_t column) {
  std::vector<double> sums(c.bins);
  for (int64_t y = row * level.cell; y < (row + 1) * level.cell; ++y) {
    for (int64_t x = column * level.cell; x < (column + 1) * level.cell; ++x) {
      const auto at = [&](int64_t dy, int64_t dx) {
        return double(plane[reflected(y + dy, c.height) * c.width + reflected(x + dx, c.width)]);
      };
      double gx = at(-1, -1) - at(-1, 1) + 2 * (at(0, -1) - at(0, 1)) + at(1, -1) - at(1, 1);
      double gy = at(-1, -1) - at(1, -1) + 2 * (at(-1, 0) - at(1, 0)) + at(-1, 1) - at(1, 1);
      gx += level.bias_x;
      gy += level.bias_y;
      if ((level.bias_x != 0 || level.bias_y != 0) && near_boundary(gx, gy, c.bins)) {
        return {};
      }
      const double weight = c.window > 0 ? double{weights[y % c.window]} * weights[x % c.window] : 1.0;
      sums[bin_by_angle(gx, gy, c.bins)] += weight * std::sqrt(gx * gx + gy * gy);
    }
  }
  double norm = 0;
  for (const double sum : sums) {
    norm += sum * sum;
  }
  for (double& sum : sums) {
    sum /= std::max(std::sqrt(norm), double{kHogEps});
  }
  return sums;
}

void test_case(Case c) {
  const int64_t plane_size = c.height * c.width;
  std::vector<uint8_t> pixels(c.images * c.channels * plane_size);
  for (uint8_t& value : pixels) {
    value = static_cast<uint8_t>(random_bits()() % 256);
  }
  std::vector<float> weights(std::max(c.window, 1));
  if (c.window > 0) {
    hog_window(c.window, weights.data());
  }
  Hog args{};
  args.dtype = DType::kUInt8;
  args.out_dtype = DType::kFloat32;
  args.images = c.images;
  args.channels = c.channels;
  args.height = c.height;
  args.width = c.width;
  args.pixels = pixels.data();
  args.image_stride = c.channels * plane_size;
  args.channel_stride = plane_size;
  args.row_stride = c.width;
  args.column_stride = 1;
  args.bins = c.bins;
  args.window = c.window;
  args.num_levels = static_cast<int32_t>(c.levels.size());
  std::vector<std::vector<float>> first;
  const auto run = [&](const Parallel& parallel, Simd simd) {
    std::vector<std::vector<float>> outs;
    for (size_t i = 0; i < c.levels.size(); ++i) {
      const int64_t cells = plane_size / c.levels[i].cell / c.levels[i].cell;
      outs.emplace_back(c.images * cells * c.channels * c.bins, kPoison);
      args.level[i] = c.levels[i];
      args.level[i].out = outs.back().data();
    }
    hog(args, parallel, simd);
    first = first.empty() ? outs : first;
    EXPECT(outs == first);
  };
  run_every_way(run);
  const std::vector<float> floats(pixels.begin(), pixels.end());  // may be read where they lie
  args.dtype = DType::kFloat32;
  args.pixels = floats.data();
  run_every_way(run);
  for (size_t i = 0; i < c.levels.size(); ++i) {
    const HogLevel& level = c.levels[i];
    const int64_t across = c.width / level.cell;
    const int64_t cells = c.height / level.cell * across;
    const int64_t area = level.group * level.group;
    double worst = 0;
    int64_t undecided = 0;
    for (int64_t unit = 0; unit < c.images * c.channels * cells; ++unit) {
      const int64_t image = unit / cells / c.channels;
      const int64_t channel = unit / cells % c.channels;
      const int64_t row = unit % cells / across;
      const int64_t column = unit % across;
      const auto start = pixels.begin() + (image * c.channels + channel) * plane_size;
      const std::vector<uint8_t> plane(start, start + plane_size);
      const std::vector<double> want = histogram(c, level, weights, plane, row, column);
      undecided += want.empty();
      if (want.empty()) {
        continue;
      }
      const int64_t vector = image * cells / area + row / level.group * (across / level.group) + column / level.group;
      for (int64_t b = 0; b < c.bins; ++b) {
        const int64_t at = ((vector * c.channels + channel) * c.bins + b) * area + row % level.group * level.group +
                           column % level.group;
        worst = std::max(worst, std::abs(first[i][at] - want[b]));
      }
    }
    EXPECT(worst < 1e-6);
    EXPECT(undecided * 4 <= c.images * c.channels * cells);
  }
}

HogLevel level(int64_t cell, int64_t group = 1, float bias_x = 0, float bias_y = 0) {
  return HogLevel{cell, group, bias_x, bias_y, nullptr};
}

}  // namespace

int main() {
  test_every_gradient_of_8_bit_pixels();
  test_ramps();
  test_window();
  test_case({2, 3, 64, 96, 18, 0, {level(4), level(8), level(16), level(32)}});
  test_case({1, 3, 32, 64, 9, 0, {level(8, 2)}});
  test_case({2, 3, 48, 144, 9, 8, {level(8), level(8, 1, 0.3f, -7.1f), level(16)}});
  test_case({1, 3, 32, 32, 9, 16, {level(4, 4), level(8, 2), level(16)}});
  test_case({1, 2, 42, 84, 7, 0, {level(6), level(7), level(14), level(21)}});
  test_case({2, 1, 6, 4, 1, 0, {level(1), level(2)}});
  test_case({1, 1, 2, 2, 36, 0, {level(1), level(2)}});
  test_case({1, 3, 39, 26, 9, 13, {level(13)}});
  test_case({2, 1, 32, 32, 18, 0, {level(4, 1, 0.3f, -7.1f), level(8, 1, 0.3f, -7.1f), level(8, 1, 55.5f, 0.7f)}});
  test_case({1, 1, 224, 448, 18, 0, {level(224)}});
  test_case({1, 2, 113, 226, 9, 0, {level(113)}});  // for CUDA, tiles of some rows
  test_case({1, 1, 90, 180, 36, 0, {level(90)}});   // and of some columns
  test_case({0, 3, 32, 32, 9, 0, {level(8)}});
  test_case({2, 0, 32, 32, 9, 0, {level(8)}});
  return failures() > 0;
}
