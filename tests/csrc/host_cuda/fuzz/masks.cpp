// random_keep, keep_to_mask and scale_mask: all equal bit for bit.
#include "fuzz.h"
#include "ops/keep_to_mask.h"
#include "ops/random_keep.h"
#include "ops/scale_mask.h"
#include "random_case.h"

namespace bimkern {
namespace {

template <typename T>
void scale(DType dtype) {
  const int64_t average = pick(1, 4), repeat = pick(1, 4);
  const int64_t images = pick(0, 5), rows = average * pick(0, 8), columns = average * pick(0, 8);
  current_case() = message("dtype ", static_cast<int>(dtype), " B=", images, " H=", rows, " W=", columns,
                           " s=", average, " r=", repeat);
  const Rows<T> mask(images, 1, rows * columns);
  const int64_t count = images * (rows / average * repeat) * (columns / average * repeat);
  const Buffer<T> want(count), got(count, random_gap());
  ScaleMask args{dtype, images, rows, columns, average, repeat, mask.data(), mask.image_stride, want.data()};
  scale_mask(args, serial());
  args.out = got.data();
  scale_mask_cuda(args, nullptr);
  expect_same(got, want, "scale_mask");
}

}  // namespace

void fuzz_keep_to_mask() {
  const TokenSizes size = random_size();
  current_case() = text_of(size);
  const Ids ids(size);
  const Buffer<float> want(size.images * size.tokens), got(size.images * size.tokens, random_gap());
  keep_to_mask({size.images, size.tokens, size.kept, ids.keep, want.data()}, serial());
  if (const int64_t image = chance(30) ? ids.spoil(size) : -1; image >= 0) {
    std::fill_n(&want[image * size.tokens], size.tokens, std::numeric_limits<float>::quiet_NaN());
  }
  keep_to_mask_cuda({size.images, size.tokens, size.kept, ids.keep, got.data()}, nullptr);
  expect_same(got, want, "keep_to_mask");
}

void fuzz_random_keep() {
  const int64_t images = chance(90) ? pick(1, 6) : 0;
  const int64_t tokens = chance(60) ? pick(1, 300) : has_optional() ? pick(300, 5000) : pick(5000, 12000);
  const bool with_parent = chance(50);
  const int64_t candidates = with_parent ? pick(0, tokens) : tokens;
  const int64_t kept = chance(15) ? 0 : chance(15) ? candidates : pick(0, candidates);
  current_case() = message("B=", images, " N=", tokens, " P=", candidates, " K=", kept, " parent ", with_parent);
  const Ids parent({images, 0, tokens, candidates, 0});
  const int64_t stride = pick(1, 2);
  const Buffer<int64_t> sample_ids(extent(images, stride, 1, 1, 1));
  for (int64_t i = 0; i < sample_ids.size(); ++i) {
    sample_ids[i] = static_cast<int64_t>((uint64_t{random_bits()()} << 32) | random_bits()());
  }
  const PhiloxKey key{{static_cast<uint32_t>(random_bits()()), static_cast<uint32_t>(random_bits()())}};
  const Buffer<int64_t> want(images * kept), got(images * kept), want_within(images * kept), got_within(images * kept);
  RandomKeep args{images,      tokens,
                  candidates,  kept,
                  key,         sample_ids.data(),
                  stride,      with_parent ? parent.keep : Keep{},
                  want.data(), with_parent ? want_within.data() : nullptr};
  random_keep(args, serial(), Simd::kBaseline);
  args.keep = got.data();
  args.within = with_parent ? got_within.data() : nullptr;
  random_keep_cuda(args, nullptr);
  expect_same(got, want, "keep");
  expect_same(got_within, want_within, "within");
}

void fuzz_scale_mask() {
  const DType dtype = random_dtype();
  dispatch(dtype, [&](auto type) { scale<decltype(type)>(dtype); });
}

}  // namespace bimkern
