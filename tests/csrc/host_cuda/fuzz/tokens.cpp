// gather_tokens and restore_tokens: copies keep their bits, sums differ by the rounding of their order. Then once more
// with an id that is there twice, and with one out of range.
#include "fuzz.h"
#include "ops/gather_tokens.h"
#include "ops/restore_tokens.h"
#include "random_case.h"

namespace bimkern {
namespace {

template <typename T>
void gather(DType dtype) {
  const TokenSizes size = random_size();
  current_case() = message("dtype ", static_cast<int>(dtype), " ", text_of(size));
  const Ids ids(size);
  const Rows<T> tokens(size.images, size.prefix + size.tokens, size.width);
  const Rows<T> pos(1, size.tokens, size.width);
  const Rows<T> grad(size.images, size.prefix + size.kept, size.width);

  const int64_t count = size.images * (size.prefix + size.kept) * size.width;
  const Buffer<T> want(count), got(count, random_gap());
  GatherTokens args{dtype,
                    size,
                    ids.keep,
                    tokens.data(),
                    tokens.image_stride,
                    tokens.row_stride,
                    has_optional() ? pos.data() : nullptr,
                    pos.row_stride,
                    want.data()};
  gather_tokens(args, serial(), Simd::kBaseline);
  args.out = got.data();
  gather_tokens_cuda(args, nullptr);
  expect_same(got, want, "gather_tokens");

  const int64_t grad_count = size.images * (size.prefix + size.tokens) * size.width;
  const Buffer<T> want_grad(grad_count), got_grad(grad_count, random_gap());
  GatherTokensBwd bwd{dtype, size, ids.keep, grad.data(), grad.image_stride, grad.row_stride, want_grad.data()};
  gather_tokens_bwd(bwd, serial(), Simd::kBaseline);
  bwd.result = got_grad.data();
  gather_tokens_bwd_cuda(bwd, nullptr);
  expect_same(got_grad, want_grad, "gather_tokens_bwd");

  const Buffer<T> want_pos(size.tokens * size.width), got_pos(size.tokens * size.width, random_gap());
  bwd.result = want_pos.data();
  gather_tokens_bwd_pos(bwd, serial(), Simd::kBaseline);
  const Buffer<int32_t> positions(size.images * size.tokens);
  bwd.result = got_pos.data();
  bwd.positions = positions.data();
  gather_tokens_bwd_pos_cuda(bwd, nullptr);
  expect_same(got_pos, want_pos, "gather_tokens_bwd_pos");

  if (size.images % 2 == 0) {  // two masks of each image
    args.masks = bwd.masks = 2;
    args.out = want.data();
    gather_tokens(args, serial(), Simd::kBaseline);
    args.out = got.data();
    gather_tokens_cuda(args, nullptr);
    expect_same(got, want, "gather_tokens of two masks");
    const Buffer<T> want_sums(grad_count / 2), got_sums(grad_count / 2, random_gap());
    bwd.result = want_sums.data();
    gather_tokens_bwd(bwd, serial(), Simd::kBaseline);
    bwd.result = got_sums.data();
    gather_tokens_bwd_cuda(bwd, nullptr);
    expect_same(got_sums, want_sums, "gather_tokens_bwd of two masks");
    args.masks = bwd.masks = 1;
  }

  if (const auto [image, token] = ids.repeat(size); image >= 0) {
    const int64_t row = image * (size.prefix + size.tokens) + size.prefix + token;
    bwd.result = got_grad.data();
    gather_tokens_bwd_cuda(bwd, nullptr);
    expect_nan(got_grad, row * size.width, (row + 1) * size.width, false, "gather_tokens_bwd");
  }
  if (const int64_t image = ids.spoil(size); image >= 0) {
    const int64_t rows = size.prefix + size.kept, grad_rows = size.prefix + size.tokens;
    gather_tokens_cuda(args, nullptr);
    expect_nan(got, image * rows * size.width, (image + 1) * rows * size.width, true, "gather_tokens");
    bwd.result = got_grad.data();
    gather_tokens_bwd_cuda(bwd, nullptr);
    expect_nan(got_grad, (image * grad_rows + size.prefix) * size.width, (image + 1) * grad_rows * size.width, false,
               "gather_tokens_bwd");
    bwd.result = got_pos.data();
    gather_tokens_bwd_pos_cuda(bwd, nullptr);
    expect_nan(got_pos, 0, got_pos.size(), false, "gather_tokens_bwd_pos");
  }
}

template <typename T>
double largest(const Rows<T>& rows) {
  double most = std::numeric_limits<float>::min();
  for (int64_t i = 0; i < rows.images * rows.rows * rows.width; ++i) {
    const int64_t row = i / rows.width;
    const int64_t at = row / rows.rows * rows.image_stride + row % rows.rows * rows.row_stride + i % rows.width;
    most = std::max(most, std::abs(as_double(rows.buffer[at])));
  }
  return most;
}

template <typename T>
void restore(DType dtype) {
  using Sum = typename Arithmetic<T>::type;
  const TokenSizes size = random_size();
  current_case() = message("dtype ", static_cast<int>(dtype), " ", text_of(size));
  const Ids ids(size);
  const Rows<T> visible(size.images, size.prefix + size.kept, size.width);
  const Rows<T> pos(1, size.tokens, size.width);
  const Rows<T> grad(size.images, size.prefix + size.tokens, size.width);
  const auto mask_token = random_buffer<T>(size.width, random_gap());
  const bool with_pos = has_optional();

  const int64_t count = size.images * (size.prefix + size.tokens) * size.width;
  const Buffer<T> want(count), got(count, random_gap());
  RestoreTokens args{dtype,
                     size,
                     ids.keep,
                     visible.data(),
                     visible.image_stride,
                     visible.row_stride,
                     mask_token.data(),
                     with_pos ? pos.data() : nullptr,
                     pos.row_stride,
                     want.data()};
  restore_tokens(args, serial(), Simd::kBaseline);
  args.out = got.data();
  restore_tokens_cuda(args, nullptr);
  expect_same(got, want, "restore_tokens");

  const int64_t visible_count = size.images * (size.prefix + size.kept) * size.width;
  const Buffer<T> want_visible(visible_count), got_visible(visible_count, random_gap());
  const Buffer<T> want_mask(size.width), got_mask(size.width, random_gap());
  const Buffer<T> want_pos(size.tokens * size.width), got_pos(size.tokens * size.width, random_gap());
  const Buffer<Sum> want_sums(size.tokens * size.width), got_sums(size.tokens * size.width);
  RestoreTokensBwd bwd{dtype,
                       size,
                       ids.keep,
                       grad.data(),
                       grad.image_stride,
                       grad.row_stride,
                       want_visible.data(),
                       want_mask.data(),
                       with_pos ? want_pos.data() : nullptr,
                       want_sums.data()};
  restore_tokens_bwd(bwd, serial(), Simd::kBaseline);
  bwd.grad_visible = got_visible.data();
  bwd.grad_mask_token = got_mask.data();
  bwd.grad_pos = with_pos ? got_pos.data() : nullptr;
  bwd.masked_sums = got_sums.data();
  const Buffer<int32_t> positions(size.images * size.tokens);
  bwd.positions = positions.data();
  restore_tokens_bwd_cuda(bwd, nullptr);
  expect_same(got_visible, want_visible, "grad_visible");
  const auto images = static_cast<double>(size.images);
  const double sums = kUnit<Sum> * images * images * largest(grad);  // a rounding of the sum of sizes for each term
  expect_near(got_sums, want_sums, 0, sums, "masked_sums");
  expect_near(got_pos, want_pos, kUnit<T>, sums, "grad_pos");
  expect_near(got_mask, want_mask, kUnit<T>, sums * static_cast<double>(size.tokens), "grad_mask_token");

  if (const auto [image, token] = ids.repeat(size); image >= 0) {
    const int64_t row = image * (size.prefix + size.tokens) + size.prefix + token;
    restore_tokens_cuda(args, nullptr);
    expect_nan(got, row * size.width, (row + 1) * size.width, false, "restore_tokens");
  }
  if (const int64_t image = ids.spoil(size); image >= 0) {
    const int64_t rows = size.prefix + size.tokens, visible_rows = size.prefix + size.kept;
    restore_tokens_cuda(args, nullptr);
    expect_nan(got, (image * rows + size.prefix) * size.width, (image + 1) * rows * size.width, false,
               "restore_tokens");
    restore_tokens_bwd_cuda(bwd, nullptr);
    expect_nan(got_visible, (image * visible_rows + size.prefix) * size.width, (image + 1) * visible_rows * size.width,
               false, "grad_visible");
  }
}

}  // namespace

void fuzz_gather_tokens() {
  const DType dtype = random_dtype();
  dispatch(dtype, [&](auto type) { gather<decltype(type)>(dtype); });
}

void fuzz_restore_tokens() {
  const DType dtype = random_dtype();
  dispatch(dtype, [&](auto type) { restore<decltype(type)>(dtype); });
}

}  // namespace bimkern
