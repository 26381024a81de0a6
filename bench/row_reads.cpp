// How fast a loop reads rows that does nothing else: all rows, and those of a mask with gaps between them. What an op
// on masked rows can reach out of memory is near the first times the share of rows that count. One thread; CPU time,
// medians of 7, in turns.
//   c++ -O3 -march=native -std=c++17 -o row_reads bench/row_reads.cpp && ./row_reads
//
// Letters as in bench/shapes.py: B = 64 images, N tokens of which K are kept, P values a row. Targets are float32.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <functional>
#include <random>
#include <vector>

namespace {

using Bytes = std::vector<char>;

constexpr int64_t kImages = 64;
constexpr int kRounds = 7;
constexpr int kLanes = 16;

volatile float sink;

double seconds(const std::function<void()>& run) {
  const std::clock_t start = std::clock();
  run();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Adds the words of a row, at least kLanes, to kLanes sums; the last ones may be added twice.
inline void add_row(const char* row, int64_t bytes, float* sums) {
  const auto* words = reinterpret_cast<const float*>(row);
  const int64_t count = bytes / static_cast<int64_t>(sizeof(float));
  for (int64_t i = 0; i < count; i += kLanes) {
    const float* from = words + std::min(i, count - kLanes);
    for (int j = 0; j < kLanes; ++j) {
      sums[j] += from[j];
    }
  }
}

struct Rows {
  int64_t pred_bytes;
  int64_t target_bytes;
  const Bytes& pred;
  const Bytes& target;
  const std::vector<float>& weight;

  void read(bool all) const {
    float sums[kLanes] = {};
    for (size_t i = 0; i < weight.size(); ++i) {
      if (all || weight[i] != 0) {
        add_row(pred.data() + i * pred_bytes, pred_bytes, sums);
        add_row(target.data() + i * target_bytes, target_bytes, sums);
      }
    }
    sink = sums[0] + sums[kLanes - 1];
  }
};

std::vector<float> weights(int64_t tokens, int64_t kept) {
  std::mt19937 random(0);
  std::vector<float> weight;
  for (int64_t image = 0; image < kImages; ++image) {
    std::vector<float> own(tokens, 1.0f);
    std::fill_n(own.begin(), kept, 0.0f);
    std::shuffle(own.begin(), own.end(), random);
    weight.insert(weight.end(), own.begin(), own.end());
  }
  return weight;
}

void measure(const char* dtype, int64_t itemsize, int64_t tokens, int64_t kept, int64_t length) {
  const int64_t count = kImages * tokens;
  const Bytes pred(count * length * itemsize, 0), target(count * length * 4, 0);
  const std::vector<float> weight = weights(tokens, kept);
  const Rows rows{length * itemsize, length * 4, pred, target, weight};
  std::vector<double> counted, all;
  for (int round = 0; round < kRounds; ++round) {
    counted.push_back(seconds([&] { rows.read(false); }));
    all.push_back(seconds([&] { rows.read(true); }));
  }
  const double gigabytes = 1e-9 * static_cast<double>(count * length * (itemsize + 4));
  const double share = static_cast<double>(tokens - kept) / static_cast<double>(tokens);
  std::printf("%s P=%d: rows that count %.1f GB/s, all rows %.1f GB/s\n", dtype, static_cast<int>(length),
              share * gigabytes / median(counted), gigabytes / median(all));
}

}  // namespace

int main() {
  for (const auto& [tokens, kept, length] : {std::array<int64_t, 3>{196, 49, 768}, {3136, 784, 54}}) {
    measure("float32", 4, tokens, kept, length);
    measure("bfloat16", 2, tokens, kept, length);
  }
}
