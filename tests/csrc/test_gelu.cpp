// gelu.h against the error function of the C library, in float64.
#include "core/gelu.h"

#include <cmath>
#include <limits>

#include "expect.h"

using namespace bimkern;

namespace {

double upper_tail(double x) { return 0.5 * std::erfc(x / std::sqrt(2.0)); }

void test_exp() {
  for (int i = 0; i <= 870000; ++i) {
    const float x = -static_cast<float>(i) * 1e-4f;
    const double want = std::exp(static_cast<double>(x));
    EXPECT(std::abs(exp_of_negative(x) - want) <= 2e-7 * want);
  }
  EXPECT(exp_of_negative(0.0f) == 1.0f);
  EXPECT(exp_of_negative(-1e30f) == exp_of_negative(-87.0f));
  EXPECT(exp_of_negative(-std::numeric_limits<float>::infinity()) < 2e-38f);
}

template <typename T>
void test_gelu(double allowed) {
  for (int i = -150000; i <= 150000; ++i) {
    const T x = static_cast<T>(i) * static_cast<T>(1e-4);
    const double below = upper_tail(-static_cast<double>(x));
    const double bell = std::exp(-0.5 * static_cast<double>(x) * x) / std::sqrt(2 * std::acos(-1.0));
    const Gelu<T> got = gelu(x);
    EXPECT(std::abs(got.value - x * below) <= allowed * (1 + std::abs(x)));
    EXPECT(std::abs(got.slope - (below + x * bell)) <= allowed);
  }
}

void test_ends() {
  EXPECT(gelu(0.0f).value == 0.0f);
  EXPECT(std::abs(gelu(0.0f).slope - 0.5f) < 1e-7f);
  EXPECT(gelu(1e20f).value == 1e20f);
  EXPECT(gelu(1e20f).slope == 1.0f);
  EXPECT(std::abs(gelu(-1e4f).value) < 1e-30f);
  EXPECT(std::isnan(gelu(std::numeric_limits<float>::quiet_NaN()).value));
  EXPECT(std::isnan(gelu(std::numeric_limits<float>::quiet_NaN()).slope));
}

}  // namespace

int main() {
  test_exp();
  test_gelu<float>(3e-7);
  test_gelu<double>(1e-15);
  test_ends();
  return failures() > 0;
}
