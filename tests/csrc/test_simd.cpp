// The choice of an instruction set, and that all sets compute the same bits.
#include "core/simd.h"

#include <cstring>
#include <string>

#include "core/rows.h"
#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

std::string error_of(const char* name, Simd widest) {
  try {
    choose_simd(name, widest);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

void test_choice() {
  EXPECT(choose_simd(nullptr, Simd::kAvx2) == Simd::kAvx2);
  EXPECT(choose_simd("baseline", Simd::kAvx512) == Simd::kBaseline);
  EXPECT(choose_simd("avx2", Simd::kAvx512) == Simd::kAvx2);
  EXPECT(choose_simd("avx512", Simd::kAvx512) == Simd::kAvx512);
  EXPECT(error_of("avx512", Simd::kAvx2) == "BIMKERN_CPU=avx512, but this machine has avx2 at most");
  EXPECT(error_of("sse", Simd::kAvx2) == "BIMKERN_CPU must be one of baseline, avx2, avx512, got 'sse'");
}

template <typename T>
bool is_nan(T x) {
  const auto value = Arithmetic<T>::load(x);
  return value != value;
}

// Every 16-bit pattern widened, and narrowed again from values on, between and beside them.
template <typename T>
void test_conversions(Simd simd) {
  constexpr int kPatterns = 0x10000;
  std::vector<T> patterns(kPatterns), zeros(kPatterns, T{0}), sums(kPatterns);
  for (int i = 0; i < kPatterns; ++i) {
    patterns[i] = T{static_cast<uint16_t>(i)};
  }
  for (const uint32_t low_bits : {0x0u, 0x1u, 0xfffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
    std::vector<float> wide(kPatterns, 0.0f);
    std::vector<T> narrowed(kPatterns);
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      accumulate_row(set, patterns.data(), kPatterns, wide.data());
      for (float& value : wide) {
        value = bit_cast<float>(bit_cast<uint32_t>(value) | low_bits);
      }
      store_row(set, wide.data(), kPatterns, narrowed.data());
    });
    for (int i = 0; i < kPatterns; ++i) {
      const float value = 0.0f + to_float(patterns[i]);
      const float expected = bit_cast<float>(bit_cast<uint32_t>(value) | low_bits);
      const T rounded = Arithmetic<T>::store(expected);
      EXPECT(is_nan(rounded) ? is_nan(narrowed[i]) : narrowed[i].bits == rounded.bits);
    }
  }
  vectorized(simd,
             [&](auto set) BIMKERN_INLINE { add_row(set, patterns.data(), zeros.data(), kPatterns, sums.data()); });
  for (int i = 0; i < kPatterns; ++i) {
    const T sum = Arithmetic<T>::store(to_float(patterns[i]) + 0.0f);
    EXPECT(is_nan(sum) ? is_nan(sums[i]) : sums[i].bits == sum.bits);
  }
}

// A tail that no whole vector covers, and nothing written behind it.
template <typename T>
void test_tails(Simd simd) {
  for (const int64_t width : {0, 1, 15, 63, 64, 65, 200}) {
    const std::vector<float> values = normals(2 * width);
    std::vector<T> a(width), b(width), out(width + 1, T{});
    for (int64_t d = 0; d < width; ++d) {
      a[d] = Arithmetic<T>::store(values[d]);
      b[d] = Arithmetic<T>::store(values[width + d]);
    }
    vectorized(simd, [&](auto set) BIMKERN_INLINE { add_row(set, a.data(), b.data(), width, out.data()); });
    for (int64_t d = 0; d < width; ++d) {
      const T sum = Arithmetic<T>::store(Arithmetic<T>::load(a[d]) + Arithmetic<T>::load(b[d]));
      EXPECT(std::memcmp(&out[d], &sum, sizeof(T)) == 0);
    }
    const T untouched{};
    EXPECT(std::memcmp(&out[width], &untouched, sizeof(T)) == 0);
  }
}

}  // namespace

int main() {
  test_choice();
  for (const Simd simd : kSimds) {
    if (simd > widest_simd()) {
      std::fprintf(stderr, "not tested: %s, which this machine lacks\n", name_of(simd));
      continue;
    }
    test_conversions<float16>(simd);
    test_conversions<bfloat16>(simd);
    test_tails<float16>(simd);
    test_tails<bfloat16>(simd);
    test_tails<float>(simd);
    test_tails<double>(simd);
  }
  return failures() > 0;
}
