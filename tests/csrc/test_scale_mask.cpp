// scale_mask against its definition, every way to run it.
#include "ops/scale_mask.h"

#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

struct Case {
  int64_t images, rows, columns, average, repeat;
};

void test_case(const Case& size) {
  const std::vector<float> mask = normals(size.images * size.rows * size.columns);
  const int64_t height = size.rows / size.average * size.repeat;
  const int64_t width = size.columns / size.average * size.repeat;
  std::vector<float> want;
  for (int64_t image = 0; image < size.images; ++image) {
    for (int64_t row = 0; row < height; ++row) {
      for (int64_t column = 0; column < width; ++column) {
        float sum = 0.0f;
        for (int64_t i = 0; i < size.average; ++i) {
          float row_sum = 0.0f;
          for (int64_t j = 0; j < size.average; ++j) {
            const int64_t y = row / size.repeat * size.average + i;
            const int64_t x = column / size.repeat * size.average + j;
            row_sum += mask[(image * size.rows + y) * size.columns + x];
          }
          sum += row_sum;
        }
        want.push_back(sum / static_cast<float>(size.average * size.average));
      }
    }
  }
  run_every_way([&](const Parallel& parallel, Simd) {
    std::vector<float> out(want.size(), -1e30f);
    scale_mask({DType::kFloat32, size.images, size.rows, size.columns, size.average, size.repeat, mask.data(),
                size.rows * size.columns, out.data()},
               parallel);
    EXPECT(out == want);
  });
}

}  // namespace

int main() {
  for (const Case& size : std::vector<Case>{{3, 14, 14, 1, 4},
                                            {3, 14, 14, 1, 2},
                                            {3, 14, 14, 1, 1},
                                            {3, 14, 14, 2, 1},
                                            {3, 6, 10, 2, 1},
                                            {2, 9, 6, 3, 1},
                                            {2, 5, 7, 1, 3},
                                            {2, 4, 6, 2, 3},
                                            {0, 14, 14, 1, 2},
                                            {3, 0, 4, 2, 1},
                                            {3, 4, 0, 1, 2},
                                            {1, 1, 1, 1, 1}}) {
    test_case(size);
  }
  return failures() > 0;
}
