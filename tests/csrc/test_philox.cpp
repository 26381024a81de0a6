// The known answers of Random123 (kat_vectors, philox4x32 10).
#include "core/philox.h"

#include "expect.h"

using bimkern::PhiloxCounter;
using bimkern::PhiloxKey;

namespace {

void expect_answer(PhiloxCounter counter, PhiloxKey key, PhiloxCounter answer) {
  const PhiloxCounter got = bimkern::philox4x32_10(counter, key);
  for (int i = 0; i < 4; ++i) {
    EXPECT(got.word[i] == answer.word[i]);
  }
}

}  // namespace

int main() {
  expect_answer({{0, 0, 0, 0}}, {{0, 0}}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect_answer({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, {{0xffffffff, 0xffffffff}},
                {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect_answer({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, {{0xa4093822, 0x299f31d0}},
                {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
  return failures() > 0;
}
