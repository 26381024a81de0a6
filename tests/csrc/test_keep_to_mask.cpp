// keep_to_mask against its definition, every way to run it.
#include "ops/keep_to_mask.h"

#include <string>

#include "core/error.h"
#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

void test_case(const TokenSizes& size) {
  const std::vector<int64_t> ids = unordered_ids(size);
  std::vector<float> want;
  for (int64_t i = 0; i < size.images * size.tokens; ++i) {
    const int64_t position = position_of(ids.data() + i / size.tokens * size.kept, size.kept, i % size.tokens);
    want.push_back(position < 0 ? 1.0f : 0.0f);
  }
  run_every_way([&](const Parallel& parallel, Simd) {
    std::vector<float> mask(want.size(), -7.0f);
    keep_to_mask({size.images, size.tokens, size.kept, Keep{ids.data(), size.kept, 1}, mask.data()}, parallel);
    EXPECT(mask == want);
  });
}

void test_errors() {
  const std::vector<int64_t> ids = {0, 1, 3, 5};
  std::vector<float> mask(10);
  std::string got;
  try {
    keep_to_mask({2, 5, 2, Keep{ids.data(), 2, 1}, mask.data()}, serial());
  } catch (const Error& error) {
    got = error.what();
  }
  EXPECT(got == "keep_to_mask: keep must hold ids in [0, N=5), got 5 in image 1");
}

}  // namespace

int main() {
  for (const TokenSizes& size : token_cases()) {
    test_case(size);
  }
  test_errors();
  return failures() > 0;
}
