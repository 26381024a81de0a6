// embed_visible and hog: what reads images.
#include <numeric>

#include "fuzz.h"
#include "ops/embed_visible.h"
#include "ops/hog.h"
#include "random_case.h"

namespace bimkern {
namespace {

// Pixels [B, C, H, W], channels first or last, with gaps behind rows, channels and images: each alone can break the
// packets of the others.
template <typename T>
struct Images {
  int64_t image_stride, channel_stride, row_stride, column_stride;
  Buffer<T> buffer;

  Images(int64_t images, int64_t channels, int64_t height, int64_t width)
      : column_stride(directed().on || chance(75) ? 1 : std::max<int64_t>(1, channels)), buffer(0) {
    const bool first = column_stride == 1;
    row_stride = random_stride(width * column_stride);
    channel_stride = first ? random_stride(height * row_stride) : 1;
    image_stride = random_stride(first ? channels * channel_stride : height * row_stride);
    const int64_t count = images * channels == 0 ? 0
                                                 : (images - 1) * image_stride + (channels - 1) * channel_stride +
                                                       (height - 1) * row_stride + (width - 1) * column_stride + 1;
    buffer = random_buffer<T>(count, random_gap());
  }
};

template <typename From, typename T>
void patches(DType image_dtype, DType dtype) {
  using A = Normal<T>;
  const int64_t images = directed().on ? 3 : chance(10) ? 0 : pick(1, 5);
  const int64_t channels = directed().on ? 3 : chance(5) ? 0 : pick(1, 4);
  const int64_t patch = directed().on ? 16 : chance(60) ? one_of<int64_t>({4, 8, 16, 32}) : pick(1, 19);
  const int64_t rows = pick(1, 5), columns = pick(1, 5);
  TokenSizes size{images, 0, rows * columns, 0, channels * patch * patch};
  size.kept = directed().on ? (size.tokens + 1) / 2 : chance(15) ? 0 : chance(20) ? size.tokens : pick(0, size.tokens);
  const Ids ids(size);
  const Images<From> pixels(images, channels, rows * patch, columns * patch);
  current_case() = message("pixels ", static_cast<int>(image_dtype), " to ", static_cast<int>(dtype), " ",
                           text_of(size), " p=", patch, " strides ", pixels.image_stride, " ", pixels.channel_stride,
                           " ", pixels.row_stride, " ", pixels.column_stride);
  const auto mean = random_buffer<A>(channels), std = random_buffer<A>(channels);
  const int64_t count = images * size.kept * size.width;
  const Buffer<T> want(count), got(count, random_gap());
  VisiblePatches args{image_dtype,
                      dtype,
                      size,
                      ids.keep,
                      patch,
                      columns,
                      pixels.buffer.data(),
                      pixels.image_stride,
                      pixels.channel_stride,
                      pixels.row_stride,
                      pixels.column_stride,
                      has_optional() ? mean.data() : nullptr,
                      has_optional() ? std.data() : nullptr,
                      want.data()};
  visible_patches(args, serial(), Simd::kBaseline);
  args.out = got.data();
  visible_patches_cuda(args, nullptr);
  expect_same(got, want, "visible_patches");
  if (const int64_t image = ids.spoil(size); image >= 0) {
    const int64_t values = size.kept * size.width;
    visible_patches_cuda(args, nullptr);
    expect_nan(got, image * values, (image + 1) * values, true, "visible_patches");
  }
}

template <typename T, typename A>
void embeddings(DType product_dtype, DType dtype) {
  const TokenSizes size = random_size();
  current_case() =
      message("product ", static_cast<int>(product_dtype), " to ", static_cast<int>(dtype), " ", text_of(size));
  const Ids ids(size);
  const auto product = random_buffer<T>(size.images * size.kept * size.width, random_gap());
  const auto bias = random_buffer<A>(size.width, random_gap());
  const Rows<A> pos(1, size.tokens, size.width), prefix(1, size.prefix, size.width);
  const int64_t count = size.images * (size.prefix + size.kept) * size.width;
  const Buffer<A> want(count), got(count, random_gap());
  AddEmbeddings args{product_dtype,
                     dtype,
                     size,
                     ids.keep,
                     product.data(),
                     bias.data(),
                     has_optional() ? pos.data() : nullptr,
                     pos.row_stride,
                     prefix.data(),
                     prefix.row_stride,
                     want.data()};
  add_embeddings(args, serial(), Simd::kBaseline);
  args.out = got.data();
  add_embeddings_cuda(args, nullptr);
  expect_same(got, want, "add_embeddings");
  if (ids.spoil(size) >= 0) {
    add_embeddings_cuda(args, nullptr);  // its row is NaN already: the id must not be followed
  }
}

// With 18 bins the squares of four pixels of this cell do not fit: a thread has eight.
constexpr int64_t kLargeCell = 128;

Hog random_hog(int64_t side, DType dtype) {
  Hog args{};
  args.dtype = dtype;
  args.out_dtype = chance(60) ? DType::kFloat32 : DType::kBFloat16;
  const bool large = side == kLargeCell;
  const auto bins = large || chance(50) ? one_of<int64_t>({large ? 18 : 9, 18, 36}) : pick(1, kMaxHogBins);
  args.bins = static_cast<int32_t>(bins);
  args.images = large ? 1 : directed().on ? 3 : chance(5) ? 0 : pick(1, 3);
  args.channels = large ? 1 : directed().on ? 3 : chance(5) ? 0 : chance(90) ? pick(1, 4) : pick(5, 40);
  args.height = std::max<int64_t>(2, side * pick(1, large ? 1 : side > 20 ? 2 : 5));
  args.width = std::max<int64_t>(2, side * pick(1, large ? 2 : side > 20 ? 3 : 6));
  const bool tiles = side <= kMaxHogWindow && args.height % side == 0 && args.width % side == 0;
  args.window = tiles && chance(30) ? static_cast<int32_t>(side) : 0;
  return args;
}

// Levels of hog, each with its wanted and its computed result, in the type of the result.
template <typename T, typename Out>
void compare_hog(Hog args, const std::vector<int64_t>& cells) {
  const Images<T> pixels(args.images, args.channels, args.height, args.width);
  args.pixels = pixels.buffer.data();
  args.image_stride = pixels.image_stride;
  args.channel_stride = pixels.channel_stride;
  args.row_stride = pixels.row_stride;
  args.column_stride = pixels.column_stride;
  current_case() = message("dtype ", static_cast<int>(args.dtype), " out ", static_cast<int>(args.out_dtype),
                           " B=", args.images, " C=", args.channels, " H=", args.height, " W=", args.width,
                           " bins=", args.bins, " window=", args.window, " cells ", cells.front(), "..", cells.back());
  std::vector<Buffer<Out>> want, got;
  for (const int64_t cell : cells) {
    const int64_t down = args.height / cell, across = args.width / cell;
    HogLevel level{cell, 1, 0, 0, nullptr};
    for (const int64_t group : {2, 3}) {
      level.group = down % group == 0 && across % group == 0 && chance(30) ? group : level.group;
    }
    if (chance(20)) {
      level.bias_x = 0.3f;
      level.bias_y = -7.1f;
    }
    const int64_t count = args.images * down * across * args.channels * args.bins;
    want.emplace_back(count);
    got.emplace_back(count, random_gap());
    level.out = want.back().data();
    args.level[args.num_levels++] = level;
  }
  hog(args, serial(), Simd::kBaseline);
  for (size_t i = 0; i < cells.size(); ++i) {
    args.level[i].out = got[i].data();
  }
  hog_cuda(args, nullptr);
  constexpr double kRelative = std::is_same_v<Out, float> ? 0 : kUnit<Out>;
  for (size_t i = 0; i < cells.size(); ++i) {
    expect_near(got[i], want[i], kRelative, 2e-6, "hog");  // values are at most 1, sums of up to a few thousand terms
  }
}

void compare_hog(const std::vector<int64_t>& cells) {
  const int64_t side =
      std::accumulate(cells.begin(), cells.end(), int64_t{1}, [](int64_t a, int64_t b) { return std::lcm(a, b); });
  const DType dtype = one_of({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kUInt8});
  const Hog args = random_hog(side, dtype);
  dispatch_hog_pixels(dtype, [&](auto type) {
    using T = decltype(type);
    args.out_dtype == DType::kFloat32 ? compare_hog<T, float>(args, cells) : compare_hog<T, bfloat16>(args, cells);
  });
}

}  // namespace

void fuzz_embed_visible() {
  const DType pixels = one_of({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64, DType::kUInt8});
  const DType narrow = random_dtype();
  dispatch_pixels(pixels, [&](auto from) {
    dispatch(narrow, [&](auto to) { patches<decltype(from), decltype(to)>(pixels, narrow); });
  });
  const DType wide = one_of({DType::kFloat32, DType::kFloat64});
  dispatch(narrow, [&](auto from) {
    dispatch_wide(wide, [&](auto to) { embeddings<decltype(from), decltype(to)>(narrow, wide); });
  });
}

void fuzz_hog() {
  if (directed().on) {
    compare_hog({8, 16});
    compare_hog({kLargeCell});
    return;
  }
  compare_hog(one_of<std::vector<int64_t>>({{4, 8, 16, 32},
                                            {8},
                                            {4, 8, 16},
                                            {6, 7, 14, 21},
                                            {1, 2},
                                            {13},
                                            {3, 6},
                                            {5},
                                            {2, 3},
                                            {28},
                                            {16},
                                            {7, 56},
                                            {11, 22},
                                            {64},
                                            {90},
                                            {kLargeCell}}));
}

}  // namespace bimkern
