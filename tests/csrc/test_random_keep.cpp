// random_keep against the definition: sort (word, place) of all candidates, keep the first K.
#include "ops/random_keep.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

constexpr int64_t kPoison = -77;

struct Case {
  int64_t images, tokens, candidates, kept;  // fewer candidates than tokens: with a parent
  bool with_parent;
};

const std::vector<int64_t> kIds = {0, 1, -1, -(int64_t{1} << 40), (int64_t{1} << 62) + 12345};
const PhiloxKey kSeed{{0x01234567u, 0x89abcdefu}};

RandomKeep args_of(const Case& size, const std::vector<int64_t>& parent, std::vector<int64_t>& keep,
                   std::vector<int64_t>& within) {
  RandomKeep args{size.images, size.tokens, size.candidates, size.kept, kSeed, kIds.data(),
                  1,           {},          keep.data(),     nullptr};
  if (size.with_parent) {
    args.parent = Keep{parent.data(), size.candidates, 1};
    args.within = within.data();
  }
  return args;
}

void test_case(const Case& size) {
  const TokenSizes candidates{size.images, 0, size.tokens, size.candidates, 0};
  const std::vector<int64_t> parent = size.with_parent ? unordered_ids(candidates) : random_ids(candidates);
  std::vector<int64_t> want_keep, want_within;
  for (int64_t image = 0; image < size.images; ++image) {
    std::vector<std::pair<uint32_t, int64_t>> order;
    for (int64_t position = 0; position < size.candidates; ++position) {
      const int64_t token = parent[image * size.candidates + position];
      order.emplace_back(token_word(kIds[image], token, kSeed), position);
    }
    std::sort(order.begin(), order.end());
    std::vector<int64_t> positions;
    for (int64_t k = 0; k < size.kept; ++k) {
      positions.push_back(order[k].second);
    }
    std::sort(positions.begin(), positions.end());
    for (const int64_t position : positions) {
      want_keep.push_back(parent[image * size.candidates + position]);
      want_within.push_back(position);
    }
  }
  if (!size.with_parent) {
    want_within.assign(want_within.size(), kPoison);
  }
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<int64_t> keep(want_keep.size(), kPoison), within(want_keep.size(), kPoison);
    random_keep(args_of(size, parent, keep, within), parallel, simd);
    EXPECT(keep == want_keep);
    EXPECT(within == want_within);
  });
}

void test_errors() {
  std::vector<int64_t> keep(4), within(4);
  std::string got;
  try {
    random_keep(args_of({2, 5, 2, 2, true}, {0, 1, 3, 5}, keep, within), serial(), Simd::kBaseline);
  } catch (const Error& error) {
    got = error.what();
  }
  EXPECT(got == "random_keep: parent must hold ids in [0, N=5), got 5 in image 1");
}

// The definition itself, by hand: words of a counter (block, 0, id low, id high).
void test_words() {
  const PhiloxCounter words = philox4x32_10({{2, 0, 0xffffffffu, 0xffffffffu}}, kSeed);
  for (int j = 0; j < 4; ++j) {
    EXPECT(token_word(-1, 8 + j, kSeed) == words.word[j]);
  }
}

}  // namespace

int main() {
  for (const Case& size : std::vector<Case>{{5, 196, 196, 49, false},
                                            {5, 196, 196, 0, false},
                                            {5, 196, 196, 196, false},
                                            {5, 197, 197, 31, false},
                                            {1, 1, 1, 1, false},
                                            {0, 9, 9, 3, false},
                                            {3, 0, 0, 0, false},
                                            {5, 64, 64, 63, false},
                                            {5, 65, 65, 64, false},
                                            {2, 70001, 70001, 999, false},
                                            {5, 196, 68, 58, true},
                                            {5, 196, 68, 0, true},
                                            {5, 196, 196, 195, true},
                                            {5, 7, 3, 3, true},
                                            {3, 9, 0, 0, true}}) {
    test_case(size);
  }
  test_errors();
  test_words();
  return failures() > 0;
}
