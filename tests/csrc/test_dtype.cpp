// The 16-bit conversions, over every 16-bit pattern and around every tie between two of them.
#include "core/dtype.h"

#include <cmath>
#include <limits>

#include "expect.h"

using namespace bimkern;

namespace {

// Value of a float16 by its definition, without the bit tricks of the code under test.
double float16_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

bool is_nan_bits(float16 x) { return (x.bits & 0x7fff) > 0x7c00; }
bool is_nan_bits(bfloat16 x) { return (x.bits & 0x7fff) > 0x7f80; }

// Between neighbors a < b (as patterns lower, lower + 1): the middle goes to the even one, and a hair off it decides.
template <typename Narrow>
void expect_rounding(uint16_t lower, float a, float b, Narrow narrow) {
  const float middle = static_cast<float>((static_cast<double>(a) + b) / 2);
  const uint16_t upper = lower + 1;
  const uint16_t even = lower % 2 == 0 ? lower : upper;
  EXPECT(narrow(middle).bits == even);
  EXPECT(narrow(std::nextafter(middle, a)).bits == lower);
  EXPECT(narrow(std::nextafter(middle, b)).bits == upper);
  EXPECT(narrow(-middle).bits == (even | 0x8000));
}

void test_float16() {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const float16 x{static_cast<uint16_t>(i)};
    const float value = to_float(x);
    if (is_nan_bits(x)) {
      EXPECT(std::isnan(value) && is_nan_bits(to_float16(value)));
      continue;
    }
    EXPECT(to_float16(value).bits == x.bits);
    if ((i & 0x7c00) != 0x7c00) {
      EXPECT(value == float16_value(x.bits) && std::signbit(value) == (i >= 0x8000));
    }
  }
  EXPECT(to_float(float16{0x7c00}) == std::numeric_limits<float>::infinity());
  for (uint16_t i = 0; i < 0x7bff; ++i) {
    expect_rounding(i, to_float(float16{i}), to_float(float16{static_cast<uint16_t>(i + 1)}), to_float16);
  }
  EXPECT(to_float16(65519.0f).bits == 0x7bff);
  EXPECT(to_float16(65520.0f).bits == 0x7c00);
  EXPECT(to_float16(-std::numeric_limits<float>::infinity()).bits == 0xfc00);
  EXPECT(to_float16(std::numeric_limits<float>::denorm_min()).bits == 0);
}

void test_bfloat16() {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const bfloat16 x{static_cast<uint16_t>(i)};
    if (is_nan_bits(x)) {
      EXPECT(std::isnan(to_float(x)) && is_nan_bits(to_bfloat16(to_float(x))));
    } else {
      EXPECT(to_bfloat16(to_float(x)).bits == x.bits);
    }
  }
  for (uint16_t i = 0; i < 0x7f7f; ++i) {
    expect_rounding(i, to_float(bfloat16{i}), to_float(bfloat16{static_cast<uint16_t>(i + 1)}), to_bfloat16);
  }
  EXPECT(to_bfloat16(std::numeric_limits<float>::max()).bits == 0x7f80);
  // A NaN whose mantissa is all in the bits that fall off must not become infinity.
  EXPECT(is_nan_bits(to_bfloat16(bit_cast<float>(0x7f800001u))));
  EXPECT(is_nan_bits(to_bfloat16(bit_cast<float>(0x7fffffffu))));
}

}  // namespace

int main() {
  test_float16();
  test_bfloat16();
  return failures() > 0;
}
