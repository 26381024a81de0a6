// gather_tokens and its gradients against what they must satisfy, every way to run them.
#include "ops/gather_tokens.h"

#include <string>

#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

struct Case {
  TokenSizes size;
  std::vector<float> tokens, pos, grad;
  std::vector<int64_t> ids;

  explicit Case(TokenSizes sizes)
      : size(sizes),
        tokens(normals(size.images * (size.prefix + size.tokens) * size.width)),
        pos(normals(size.tokens * size.width)),
        grad(normals(size.images * (size.prefix + size.kept) * size.width)),
        ids(unordered_ids(size)) {}

  Keep keep() const { return Keep{ids.data(), size.kept, 1}; }

  GatherTokensBwd bwd(std::vector<float>& result) const {
    return GatherTokensBwd{DType::kFloat32, size,         keep(), grad.data(), (size.prefix + size.kept) * size.width,
                           size.width,      result.data()};
  }
};

void test_case(const TokenSizes& size, const Parallel& parallel, Simd simd) {
  const Case sample(size);
  const int64_t rows = size.prefix + size.tokens;
  const int64_t visible = size.prefix + size.kept;
  const float poison = -1e30f;

  std::vector<float> out(size.images * visible * size.width, poison);
  gather_tokens({DType::kFloat32, size, sample.keep(), sample.tokens.data(), rows * size.width, size.width,
                 sample.pos.data(), size.width, out.data()},
                parallel, simd);
  std::vector<float> grad_tokens(size.images * rows * size.width, poison);
  gather_tokens_bwd(sample.bwd(grad_tokens), parallel, simd);
  std::vector<float> grad_pos(size.tokens * size.width, poison);
  gather_tokens_bwd_pos(sample.bwd(grad_pos), parallel, simd);

  std::vector<float> want_tokens(grad_tokens.size(), 0.0f);
  std::vector<float> want_pos(grad_pos.size(), 0.0f);
  for (int64_t image = 0; image < size.images; ++image) {
    for (int64_t position = 0; position < visible; ++position) {
      const int64_t id = position < size.prefix ? -1 : sample.ids[image * size.kept + position - size.prefix];
      const int64_t row = position < size.prefix ? position : size.prefix + id;
      for (int64_t d = 0; d < size.width; ++d) {
        const int64_t from = (image * rows + row) * size.width + d;
        const int64_t to = (image * visible + position) * size.width + d;
        EXPECT(out[to] == sample.tokens[from] + (id < 0 ? 0.0f : sample.pos[id * size.width + d]));
        want_tokens[from] = sample.grad[to];
        if (id >= 0) {
          want_pos[id * size.width + d] += sample.grad[to];
        }
      }
    }
  }
  EXPECT(grad_tokens == want_tokens);
  EXPECT(grad_pos == want_pos);
}

// Two masks of each image, a mask's images behind those of the other: tokens are read twice, and gradients add up.
void test_masks(TokenSizes size, const Parallel& parallel, Simd simd) {
  if (size.images % 2 != 0) {
    size.images *= 2;
  }
  const Case sample(size);
  const int64_t sources = size.images / 2;
  const int64_t rows = size.prefix + size.tokens;
  const int64_t visible = size.prefix + size.kept;
  const float poison = -1e30f;
  std::vector<float> out(size.images * visible * size.width, poison);
  GatherTokens args{DType::kFloat32, size, sample.keep(), sample.tokens.data(), rows * size.width, size.width,
                    nullptr,         0,    out.data()};
  args.masks = 2;
  gather_tokens(args, parallel, simd);
  std::vector<float> grad_tokens(sources * rows * size.width, poison);
  GatherTokensBwd bwd = sample.bwd(grad_tokens);
  bwd.masks = 2;
  gather_tokens_bwd(bwd, parallel, simd);

  std::vector<float> want_tokens(grad_tokens.size(), 0.0f);
  for (int64_t image = 0; image < size.images; ++image) {
    for (int64_t position = 0; position < visible; ++position) {
      const int64_t row =
          position < size.prefix ? position : size.prefix + sample.ids[image * size.kept + position - size.prefix];
      for (int64_t d = 0; d < size.width; ++d) {
        const int64_t from = (image % sources * rows + row) * size.width + d;
        const int64_t to = (image * visible + position) * size.width + d;
        EXPECT(out[to] == sample.tokens[from]);
        want_tokens[from] += sample.grad[to];
      }
    }
  }
  EXPECT(grad_tokens == want_tokens);
}

void expect_error(Case sample, const std::string& text) {
  std::vector<float> result(sample.tokens.size());
  std::string got;
  try {
    gather_tokens_bwd(sample.bwd(result), serial(), Simd::kBaseline);
  } catch (const Error& error) {
    got = error.what();
  }
  EXPECT(got == text);
}

void test_errors() {
  Case sample(TokenSizes{2, 0, 5, 2, 3});
  sample.ids = {0, 1, 3, 5};
  expect_error(sample, "gather_tokens_bwd: keep must hold ids in [0, N=5), got 5 in image 1");
  sample.ids = {-1, 1, 3, 4};
  expect_error(sample, "gather_tokens_bwd: keep must hold ids in [0, N=5), got -1 in image 0");
  sample.ids = {0, 1, 3, 3};
  expect_error(sample, "gather_tokens_bwd: keep must not repeat an id within an image, got 3 twice in image 1");
}

}  // namespace

int main() {
  for (const TokenSizes& size : token_cases()) {
    run_every_way([&](const Parallel& parallel, Simd simd) {
      test_case(size, parallel, simd);
      test_masks(size, parallel, simd);
    });
  }
  test_errors();
  return failures() > 0;
}
