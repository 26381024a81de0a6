// What the kernels of hog.h on every device take from the host: boundaries, window, and which cells are sums of others.
#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/hog.h"

namespace bimkern {

HogBoundaries hog_boundaries(int32_t bins) {
  constexpr double kPi = 3.14159265358979323846;
  HogBoundaries boundaries{};
  boundaries.bins = bins;
  std::fill(std::begin(boundaries.cotangent), std::end(boundaries.cotangent), -1);
  for (int32_t k = 1; 2 * k < bins; ++k) {
    boundaries.cotangent[k - 1] = bit_cast<int32_t>(static_cast<float>(1 / std::tan(k * kPi / bins)));
  }
  return boundaries;
}

void hog_window(int32_t window, float* weights) {
  std::vector<double> values(window);
  for (int32_t i = 0; i < window; ++i) {
    const double z = (i - (window - 1) / 2.0) / (window / 2.0);
    values[i] = std::exp(-z * z / 2);
  }
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  std::transform(values.begin(), values.end(), weights, [&](double value) { return static_cast<float>(value / sum); });
}

int32_t hog_source(const Hog& args, int32_t i) {
  const HogLevel& level = args.level[i];
  for (int32_t j = i - 1; j >= 0; --j) {
    const HogLevel& finer = args.level[j];
    if (level.cell % finer.cell == 0 && level.bias_x == finer.bias_x && level.bias_y == finer.bias_y) {
      return j;
    }
  }
  return -1;
}

}  // namespace bimkern
