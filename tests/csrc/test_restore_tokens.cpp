// restore_tokens and its gradients against what they must satisfy, every way to run them.
#include "ops/restore_tokens.h"

#include <cmath>
#include <limits>
#include <string>

#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

constexpr float kPoison = -1e30f;

struct Grads {
  std::vector<float> visible, mask_token, pos, masked_sums;

  explicit Grads(const TokenSizes& size)
      : visible(size.images * (size.prefix + size.kept) * size.width, kPoison),
        mask_token(size.width, kPoison),
        pos(size.tokens * size.width, kPoison),
        masked_sums(size.tokens * size.width, kPoison) {}
};

struct Case {
  TokenSizes size;
  int64_t rows;
  std::vector<float> visible, mask_token, pos, grad;
  std::vector<int64_t> ids;

  explicit Case(TokenSizes sizes)
      : size(sizes),
        rows(size.prefix + size.tokens),
        visible(normals(size.images * (size.prefix + size.kept) * size.width)),
        mask_token(normals(size.width)),
        pos(normals(size.tokens * size.width)),
        grad(normals(size.images * rows * size.width)),
        ids(unordered_ids(size)) {}

  RestoreTokens fwd(std::vector<float>& out, bool with_pos) const {
    return RestoreTokens{DType::kFloat32,
                         size,
                         Keep{ids.data(), size.kept, 1},
                         visible.data(),
                         (size.prefix + size.kept) * size.width,
                         size.width,
                         mask_token.data(),
                         with_pos ? pos.data() : nullptr,
                         size.width,
                         out.data()};
  }

  RestoreTokensBwd bwd(Grads& grads, bool with_pos) const {
    return RestoreTokensBwd{DType::kFloat32,
                            size,
                            Keep{ids.data(), size.kept, 1},
                            grad.data(),
                            rows * size.width,
                            size.width,
                            grads.visible.data(),
                            grads.mask_token.data(),
                            with_pos ? grads.pos.data() : nullptr,
                            grads.masked_sums.data()};
  }
};

// The CPU adds in the order of images, then of tokens, and keeps it to the last bit. The CUDA kernels add in lanes: any
// order of so many terms differs from another by a rounding of the sum of their sizes per term, at most.
bool equal_sums(const std::vector<float>& got, const std::vector<float>& want, const std::vector<float>& sizes,
                int64_t terms) {
  if (!kTestsCuda) {
    return got == want;
  }
  bool equal = got.size() == want.size();
  for (size_t i = 0; equal && i < want.size(); ++i) {
    const float bound = static_cast<float>(terms) * std::numeric_limits<float>::epsilon() * sizes[i];
    equal = std::abs(got[i] - want[i]) <= bound;
  }
  return equal;
}

void test_case(const TokenSizes& size, bool with_pos) {
  const Case sample(size);
  std::vector<float> want_out(size.images * sample.rows * size.width);
  Grads want(size);
  want.pos.assign(want.pos.size(), 0.0f);
  std::vector<float> kept_sums = want.pos, masked_sums = want.pos, sizes = want.pos;  // sizes: of the terms, added up
  for (int64_t image = 0; image < size.images; ++image) {
    const int64_t* ids = sample.ids.data() + image * size.kept;
    for (int64_t row = 0; row < sample.rows; ++row) {
      const int64_t token = row - size.prefix;
      const int64_t position = token < 0 ? token : position_of(ids, size.kept, token);
      const int64_t visible = image * (size.prefix + size.kept) + size.prefix + position;
      for (int64_t d = 0; d < size.width; ++d) {
        const bool masked = token >= 0 && position < 0;
        const float added = token >= 0 && with_pos ? sample.pos[token * size.width + d] : 0.0f;
        const int64_t at = (image * sample.rows + row) * size.width + d;
        want_out[at] = (masked ? sample.mask_token[d] : sample.visible[visible * size.width + d]) + added;
        if (!masked) {
          want.visible[visible * size.width + d] = sample.grad[at];
        }
        if (token >= 0) {
          (masked ? masked_sums : kept_sums)[token * size.width + d] += sample.grad[at];
          sizes[token * size.width + d] += std::abs(sample.grad[at]);
        }
      }
    }
  }
  std::vector<double> mask_token(size.width);
  std::vector<float> all_sizes(size.width);
  for (int64_t i = 0; i < size.tokens * size.width; ++i) {
    mask_token[i % size.width] += masked_sums[i];
    all_sizes[i % size.width] += sizes[i];
    want.pos[i] = with_pos ? kept_sums[i] + masked_sums[i] : kPoison;
  }
  want.mask_token.assign(mask_token.begin(), mask_token.end());
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> out(want_out.size(), kPoison);
    restore_tokens(sample.fwd(out, with_pos), parallel, simd);
    EXPECT(out == want_out);
    Grads grads(size);
    restore_tokens_bwd(sample.bwd(grads, with_pos), parallel, simd);
    EXPECT(grads.visible == want.visible);
    EXPECT(equal_sums(grads.mask_token, want.mask_token, all_sizes, size.images + size.tokens));
    EXPECT(with_pos ? equal_sums(grads.pos, want.pos, sizes, size.images) : grads.pos == want.pos);
  });
}

void test_errors() {
  Case sample(TokenSizes{2, 0, 5, 2, 3});
  sample.ids = {0, 1, 3, 5};
  std::string fwd, bwd;
  try {
    std::vector<float> out(sample.grad.size());
    restore_tokens(sample.fwd(out, true), serial(), Simd::kBaseline);
  } catch (const Error& error) {
    fwd = error.what();
  }
  EXPECT(fwd == "restore_tokens: keep must hold ids in [0, N=5), got 5 in image 1");
  sample.ids = {0, 1, 3, 3};
  try {
    Grads grads(sample.size);
    restore_tokens_bwd(sample.bwd(grads, true), serial(), Simd::kBaseline);
  } catch (const Error& error) {
    bwd = error.what();
  }
  EXPECT(bwd == "restore_tokens_bwd: keep must not repeat an id within an image, got 3 twice in image 1");
}

}  // namespace

int main() {
  for (const TokenSizes& size : token_cases()) {
    test_case(size, true);
    test_case(size, false);
  }
  test_errors();
  return failures() > 0;
}
