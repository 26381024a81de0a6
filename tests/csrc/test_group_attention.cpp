// group_attention against its definition in float64, the same bits every way to run it, and plans that are wrong.
#include "ops/group_attention.h"

#include <cmath>
#include <string>

#include "core/error.h"
#include "core/product.h"
#include "expect.h"
#include "sample.h"

using namespace bimkern;

namespace {

bool near(const std::vector<float>& got, const std::vector<double>& want) {
  bool all = got.size() == want.size();
  for (size_t i = 0; all && i < want.size(); ++i) {
    all = std::abs(got[i] - want[i]) <= 2e-5 * (1 + std::abs(want[i]));
  }
  return all;
}

// Visible tokens of a grid of side x side in windows of w x w, listed window by window in groups of one window each.
struct Plans {
  Plans(int64_t count, int64_t side, int64_t w, int64_t visible) : tokens(visible) {
    const int64_t columns = ceil_div(side, w);
    group_size = w * w;
    groups = columns * columns;
    for (int64_t s = 0; s < count; ++s) {
      const std::vector<int64_t> keep = random_ids({1, 0, side * side, visible, 1});
      for (const int64_t id : keep) {
        const int64_t row = id / side, column = id % side;
        windows.push_back(static_cast<int32_t>(row / w * columns + column / w));
        positions.push_back(static_cast<int32_t>(row % w * (2 * w - 1) + column % w));
      }
      for (int64_t window = 0; window < groups; ++window) {
        int64_t found = 0;
        for (int64_t t = 0; t < visible; ++t) {
          if (windows[s * visible + t] == window) {
            members.push_back(static_cast<int32_t>(t));
            ++found;
          }
        }
        members.insert(members.end(), group_size - found, -1);
      }
    }
    plans = {count, groups, group_size, visible, members.data(), windows.data(), positions.data()};
  }

  int64_t tokens, groups, group_size;
  std::vector<int32_t> members, windows, positions;
  WindowPlans plans;
};

struct Expected {
  std::vector<double> out, grad_qkv, grad_table;
};

Expected define(const GroupAttention& of, const float* grad) {
  const int64_t T = of.plans.tokens, H = of.heads, D = of.width, B = of.images, R = of.relative_positions;
  const auto* qkv = static_cast<const float*>(of.qkv);
  Expected want{std::vector<double>(B * T * H * D), std::vector<double>(B * T * 3 * H * D), std::vector<double>(R * H)};
  for (int64_t b = 0; b < B; ++b) {
    const int64_t s = of.plans.plans == 1 ? 0 : b;
    for (int64_t h = 0; h < H; ++h) {
      const auto at = [&](int64_t part, int64_t t) { return ((b * T + t) * 3 + part) * H * D + h * D; };
      for (int64_t i = 0; i < T; ++i) {
        std::vector<double> weights(T), slopes(T);
        std::vector<int64_t> rows(T);
        double sum = 0, along = 0;
        for (int64_t j = 0; j < T; ++j) {
          if (of.plans.windows[s * T + i] != of.plans.windows[s * T + j]) {
            continue;
          }
          rows[j] = R / 2 + of.plans.positions[s * T + i] - of.plans.positions[s * T + j];
          double logit = static_cast<const float*>(of.table)[rows[j] * H + h];
          for (int64_t d = 0; d < D; ++d) {
            logit += of.scale * qkv[at(0, i) + d] * qkv[at(1, j) + d];
            slopes[j] += static_cast<double>(grad[((b * T + i) * H + h) * D + d]) * qkv[at(2, j) + d];
          }
          weights[j] = std::exp(logit);
          sum += weights[j];
        }
        for (int64_t j = 0; j < T; ++j) {
          weights[j] /= sum;
          along += weights[j] * slopes[j];
        }
        for (int64_t j = 0; j < T; ++j) {
          const double slope = weights[j] * (slopes[j] - along);
          want.grad_table[rows[j] * H + h] += slope;
          for (int64_t d = 0; d < D; ++d) {
            const int64_t o = ((b * T + i) * H + h) * D + d;
            want.out[o] += weights[j] * qkv[at(2, j) + d];
            want.grad_qkv[at(0, i) + d] += of.scale * slope * qkv[at(1, j) + d];
            want.grad_qkv[at(1, j) + d] += of.scale * slope * qkv[at(0, i) + d];
            want.grad_qkv[at(2, j) + d] += weights[j] * grad[o];
          }
        }
      }
    }
  }
  return want;
}

void test_attention(const Plans& of_windows, int64_t w, int64_t images, int64_t heads, int64_t width) {
  const int64_t T = of_windows.tokens, R = (2 * w - 1) * (2 * w - 1);
  const std::vector<float> qkv = normals(images * T * 3 * heads * width), table = normals(R * heads);
  const std::vector<float> grad = normals(images * T * heads * width);
  const int64_t row = 3 * heads * width;
  const GroupAttention of{DType::kFloat32, of_windows.plans, images, heads,       width, R, 0.3,
                          qkv.data(),      T * row,          row,    table.data()};
  const Expected want = define(of, grad.data());
  Expected first;
  run_every_way([&](const Parallel& parallel, Simd simd) {
    std::vector<float> out(grad.size(), -1e30f), logsumexp(images * heads * T), grad_qkv(qkv.size(), -1e30f);
    std::vector<float> grad_table(table.size(), -1e30f);
    std::vector<double> scratch(attention_tasks(images, of.plans.plans) * heads * R, -1e30);
    group_attention({of, out.data(), logsumexp.data()}, parallel, simd);
    group_attention_bwd({of, logsumexp.data(), grad.data(), T * heads * width, heads * width, grad_qkv.data(),
                         grad_table.data(), scratch.data()},
                        parallel, simd);
    EXPECT(near(out, want.out));
    EXPECT(near(grad_qkv, want.grad_qkv));
    EXPECT(near(grad_table, want.grad_table));
    const Expected found{
        {out.begin(), out.end()}, {grad_qkv.begin(), grad_qkv.end()}, {grad_table.begin(), grad_table.end()}};
    if (first.grad_table.empty()) {
      first = found;
    }
    EXPECT(found.out == first.out);
    EXPECT(found.grad_qkv == first.grad_qkv);
    EXPECT(found.grad_table == first.grad_table);
  });
}

// Sums of several tiles and strides, started from a matrix or from zero.
void test_product() {
  constexpr int64_t kRows = 8, kColumns = 32, kDepth = 5;
  const std::vector<float> a = normals(kRows * kDepth), b = normals(kDepth * kColumns), c = normals(kRows * kColumns);
  for (const bool turned : {false, true}) {
    for (const float* start : {static_cast<const float*>(nullptr), c.data()}) {
      std::vector<float> got(kRows * kColumns, -1e30f);
      std::vector<double> want(got.size());
      for (int64_t i = 0; i < kRows; ++i) {
        for (int64_t j = 0; j < kColumns; ++j) {
          double sum = start == nullptr ? 0 : c[i * kColumns + j];
          for (int64_t k = 0; k < kDepth; ++k) {
            sum += static_cast<double>(a[turned ? k * kRows + i : i * kDepth + k]) * b[k * kColumns + j];
          }
          want[i * kColumns + j] = sum;
        }
      }
      product<float>({a.data(), turned ? 1 : kDepth, turned ? kRows : 1}, {b.data(), kColumns}, {start, kColumns},
                     {got.data(), kColumns}, kRows, kColumns, kDepth);
      EXPECT(near(got, want));
    }
  }
}

void test_errors() {
  const std::vector<int32_t> windows = {0, 0, 1}, positions = {0, 1, 0};
  const auto said = [&](std::vector<int32_t> members) {
    try {
      read_plans("op",
                 {1, 1, static_cast<int64_t>(members.size()), 3, members.data(), windows.data(), positions.data()}, 3);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT(said({0, 1, 2, -1}).empty());
  EXPECT(said({0, 1, 3}) == "op: members must hold ids in [0, T=3), got 3 in plan 0");
  EXPECT(said({0, 1, 1}) == "op: members must not repeat an id within a plan, got 1 twice in plan 0");
  EXPECT(said({0, 1, -1}) == "op: members must hold all T=3 tokens, got 2 in plan 0");
  EXPECT(said({0, 2, 1}) == "op: members of a window must be neighbors in one group, got window 0 apart in plan 0");
  EXPECT(said({0, -1, 1, 2}) == "op: members of a window must be neighbors in one group, got window 0 apart in plan 0");
  const std::vector<int32_t> members = {0, 1, 2}, beyond = {0, 2, 0};
  std::string message;
  try {
    read_plans("op", {1, 1, 3, 3, members.data(), windows.data(), beyond.data()}, 3);
  } catch (const Error& error) {
    message = error.what();
  }
  EXPECT(message == "op: positions must lie in [0, 1] of this table, got 2 in plan 0");
}

}  // namespace

int main() {
  test_product();
  test_errors();
  for (const int64_t width : {1, 8, 16, 33}) {
    test_attention(Plans(1, 7, 3, 29), 3, 5, 2, width);
    test_attention(Plans(3, 7, 3, 29), 3, 3, 2, width);
  }
  test_attention(Plans(1, 9, 9, 81), 9, 2, 1, 8);  // queries of more than one block
  test_attention(Plans(1, 7, 3, 29), 3, 0, 2, 8);
  test_attention(Plans(1, 1, 1, 1), 1, 1, 3, 4);
  test_attention(Plans(1, 4, 2, 0), 2, 2, 3, 4);
  return failures() > 0;
}
