// Philox4x32-10, a counter-based random generator: 128 random bits as a pure function of a counter and a key.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 4.3; constants
// and known answers from the authors' Random123.
#pragma once

#include "core/common.h"

namespace bimkern {

struct PhiloxCounter {
  uint32_t word[4];
};

struct PhiloxKey {
  uint32_t word[2];
};

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;

BIMKERN_HD PhiloxCounter philox_round(PhiloxCounter counter, PhiloxKey key) {
  const uint64_t product0 = static_cast<uint64_t>(kPhiloxMultiplier0) * counter.word[0];
  const uint64_t product1 = static_cast<uint64_t>(kPhiloxMultiplier1) * counter.word[2];
  return PhiloxCounter{
      {static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key.word[0], static_cast<uint32_t>(product1),
       static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key.word[1], static_cast<uint32_t>(product0)}};
}

// The key of the round after.
BIMKERN_HD PhiloxKey philox_next(PhiloxKey key) {
  constexpr uint32_t kWeyl0 = 0x9E3779B9u;  // golden ratio
  constexpr uint32_t kWeyl1 = 0xBB67AE85u;  // sqrt(3) - 1
  return PhiloxKey{{key.word[0] + kWeyl0, key.word[1] + kWeyl1}};
}

BIMKERN_HD PhiloxCounter philox4x32_10(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    counter = philox_round(counter, key);
    key = philox_next(key);
  }
  return counter;
}

}  // namespace bimkern
