// The two ends of embed_visible against their definitions, every way to run them. Equal to the last bit.
#include "ops/embed_visible.h"

#include <cstring>
#include <limits>
#include <string>

#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

struct Grid {
  int64_t images, channels, rows, columns, patch, kept;
  bool channels_last;
};

template <typename From>
std::vector<From> random_pixels(int64_t count) {
  std::vector<From> pixels;
  for (const float value : normals(count)) {
    if constexpr (std::is_same_v<From, uint8_t>) {
      pixels.push_back(static_cast<uint8_t>(random_bits()() % 256));
    } else {
      pixels.push_back(Arithmetic<From>::store(value));
    }
  }
  return pixels;
}

template <typename From, typename T>
void test_patches(const Grid& grid, DType image_dtype, DType dtype, bool with_statistics) {
  using A = Normal<T>;
  const int64_t height = grid.rows * grid.patch, width = grid.columns * grid.patch;
  const int64_t area = grid.patch * grid.patch;
  const int64_t length = grid.channels * area;
  const TokenSizes size{grid.images, 0, grid.rows * grid.columns, grid.kept, length};
  const auto pixels = random_pixels<From>(grid.images * grid.channels * height * width);
  const std::vector<int64_t> ids = unordered_ids(size);
  const std::vector<float> means = normals(grid.channels), stds = normals(grid.channels);
  const std::vector<A> mean(means.begin(), means.end()), std(stds.begin(), stds.end());
  const int64_t channel_stride = grid.channels_last ? 1 : height * width;
  const int64_t column_stride = grid.channels_last ? grid.channels : 1;
  const int64_t row_stride = width * column_stride;
  const int64_t image_stride = grid.channels * height * width;
  std::vector<T> want(grid.images * grid.kept * length);
  for (int64_t i = 0; i < grid.images * grid.kept; ++i) {
    const int64_t image = i / grid.kept, id = ids[i];
    for (int64_t e = 0; e < length; ++e) {
      const int64_t c = e / area, y = id / grid.columns * grid.patch + e % area / grid.patch;
      const int64_t x = id % grid.columns * grid.patch + e % grid.patch;
      const From pixel = pixels[image * image_stride + c * channel_stride + y * row_stride + x * column_stride];
      const A full = std::is_same_v<From, uint8_t> ? A{255} : A{1};
      const A offset = with_statistics ? full * mean[c] : A{0}, scale = A{1} / (with_statistics ? full * std[c] : full);
      want[i * length + e] = Arithmetic<T>::store((static_cast<A>(Arithmetic<From>::load(pixel)) - offset) * scale);
    }
  }
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<T> out(want.size(), Arithmetic<T>::store(std::numeric_limits<A>::quiet_NaN()));
    visible_patches(
        VisiblePatches{image_dtype, dtype, size, Keep{ids.data(), grid.kept, 1}, grid.patch, grid.columns,
                       pixels.data(), image_stride, channel_stride, row_stride, column_stride,
                       with_statistics ? mean.data() : nullptr, with_statistics ? std.data() : nullptr, out.data()},
        parallel, simd);
    EXPECT(out.empty() || std::memcmp(out.data(), want.data(), out.size() * sizeof(T)) == 0);
  });
}

void test_patches(const Grid& grid) {
  for (const bool with_statistics : {true, false}) {
    test_patches<uint8_t, float>(grid, DType::kUInt8, DType::kFloat32, with_statistics);
    test_patches<uint8_t, bfloat16>(grid, DType::kUInt8, DType::kBFloat16, with_statistics);
    test_patches<float, float16>(grid, DType::kFloat32, DType::kFloat16, with_statistics);
    test_patches<bfloat16, double>(grid, DType::kBFloat16, DType::kFloat64, with_statistics);
  }
}

template <typename T>
void test_embeddings(const TokenSizes& size, DType dtype, bool with_pos) {
  const int64_t rows = size.prefix + size.kept;
  const auto product = random_pixels<T>(size.images * size.kept * size.width);
  const std::vector<float> bias = normals(size.width), pos = normals(size.tokens * size.width);
  const std::vector<float> prefix = normals(size.prefix * size.width);
  const std::vector<int64_t> ids = unordered_ids(size);
  std::vector<float> want;
  for (int64_t i = 0; i < size.images * rows; ++i) {
    const int64_t position = i % rows - size.prefix;
    for (int64_t d = 0; d < size.width; ++d) {
      if (position < 0) {
        want.push_back(prefix[i % rows * size.width + d]);
        continue;
      }
      const int64_t row = i / rows * size.kept + position;
      const float value = static_cast<float>(Arithmetic<T>::load(product[row * size.width + d])) + bias[d];
      want.push_back(with_pos ? value + pos[ids[row] * size.width + d] : value);
    }
  }
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> out(want.size(), -1e30f);
    add_embeddings(
        AddEmbeddings{dtype, DType::kFloat32, size, Keep{ids.data(), size.kept, 1}, product.data(), bias.data(),
                      with_pos ? pos.data() : nullptr, size.width, prefix.data(), size.width, out.data()},
        parallel, simd);
    EXPECT(out == want);
  });
}

void test_errors() {
  const std::vector<uint8_t> pixels(2 * 3 * 4 * 4);
  const std::vector<int64_t> ids = {0, 1, 2, 4};
  std::vector<float> out(2 * 2 * 12);
  std::string got;
  try {
    visible_patches(VisiblePatches{DType::kUInt8, DType::kFloat32, TokenSizes{2, 0, 4, 2, 12}, Keep{ids.data(), 2, 1},
                                   2, 2, pixels.data(), 48, 16, 4, 1, nullptr, nullptr, out.data()},
                    serial(), Simd::kBaseline);
  } catch (const Error& error) {
    got = error.what();
  }
  EXPECT(got == "embed_visible: keep must hold ids in [0, N=4), got 4 in image 1");
  got.clear();
  try {
    dispatch(DType::kUInt8, [](auto) {});
  } catch (const Error& error) {
    got = error.what();
  }
  EXPECT(got == "dtype must be one of float32, float16, bfloat16, float64, got tag 4");
  got.clear();
  try {
    dispatch_wide(DType::kFloat16, [](auto) {});
  } catch (const Error& error) {
    got = error.what();
  }
  EXPECT(got == "dtype must be float32 or float64, got tag 1");
}

}  // namespace

int main() {
  for (const bool channels_last : {false, true}) {
    test_patches({3, 3, 4, 3, 16, 5, channels_last});
    test_patches({3, 1, 4, 3, 14, 12, channels_last});
    test_patches({2, 4, 2, 5, 7, 1, channels_last});
    test_patches({2, 2, 3, 3, 1, 0, channels_last});
    test_patches({0, 3, 4, 3, 16, 5, channels_last});
    test_patches({2, 0, 4, 3, 16, 5, channels_last});
  }
  for (const TokenSizes& size : token_cases()) {
    for (const bool with_pos : {true, false}) {
      test_embeddings<float>(size, DType::kFloat32, with_pos);
      test_embeddings<bfloat16>(size, DType::kBFloat16, with_pos);
      test_embeddings<float16>(size, DType::kFloat16, with_pos);
      test_embeddings<double>(size, DType::kFloat64, with_pos);
    }
  }
  test_errors();
  return failures() > 0;
}
