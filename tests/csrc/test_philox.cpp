// The known answers of Random123 (kat_vectors, philox4x32 10), and that lanes compute the same on every instruction
// set.
#include "core/philox_lanes.h"

#include <cstdio>
#include <initializer_list>

#include "expect.h"

using namespace bimkern;

namespace {

void expect_answer(PhiloxCounter counter, PhiloxKey key, PhiloxCounter answer) {
  const PhiloxCounter got = philox4x32_10(counter, key);
  for (int i = 0; i < 4; ++i) {
    EXPECT(got.word[i] == answer.word[i]);
  }
}

// Also where the first word runs over.
void test_lanes(Simd simd) {
  const PhiloxKey key{{0xa4093822u, 0x299f31d0u}};
  for (const uint32_t start : {0u, 49u, 0x7ffffffcu, 0xfffffffdu}) {
    const PhiloxCounter first{{start, 0x85a308d3u, 0xfffffff0u, 0x03707344u}};
    uint32_t words[4 * kPhiloxLanes];
    vectorized(simd, [&](auto set) BIMKERN_INLINE { philox_lanes(set, first, key, words); });
    for (int i = 0; i < 4 * kPhiloxLanes; ++i) {
      PhiloxCounter counter = first;
      counter.word[0] += i / 4;
      EXPECT(words[i] == philox4x32_10(counter, key).word[i % 4]);
    }
  }
}

}  // namespace

int main() {
  for (const Simd simd : kSimds) {
    if (simd > widest_simd()) {
      std::fprintf(stderr, "not tested: %s, which this machine lacks\n", name_of(simd));
      continue;
    }
    test_lanes(simd);
  }
  expect_answer({{0, 0, 0, 0}}, {{0, 0}}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect_answer({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, {{0xffffffff, 0xffffffff}},
                {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect_answer({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, {{0xa4093822, 0x299f31d0}},
                {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
  return failures() > 0;
}
