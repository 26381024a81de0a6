// The kernels on the shapes of a ViT-B at 224 px with four images, and what each of their launches has to move at
// least.
//   traffic_host_cuda      a JSON object for every launch; `python -m bench traffic` makes tables of them
#include <cinttypes>
#include <cstdio>
#include <set>
#include <string>

#include "counter.h"
#include "ops/embed_visible.h"
#include "ops/gather_tokens.h"
#include "ops/hog.h"
#include "ops/keep_to_mask.h"
#include "ops/random_keep.h"
#include "ops/restore_tokens.h"
#include "ops/scale_mask.h"
#include "sample.h"

using namespace bimkern;
using host_cuda::device_memory;

namespace {

constexpr int64_t B = 4, R = 1, N = 196, K = 49, D = 768, kPatch = 16, kSide = 14, kImage = 224, kChannels = 3;
constexpr TokenSizes kSize{B, R, N, K, D};
constexpr int64_t kInt32 = 4, kInt64 = 8, kFloat = 4;

constexpr DType kFloats[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64};

const char* name_of(DType dtype) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "float64", "uint8"};
  return kNames[static_cast<int>(dtype)];
}

// Whole numbers from 0 to 255, in any type.
void* random_values(DType dtype, int64_t count) {
  void* const memory = device_memory(count * bytes_of(dtype));
  dispatch_pixels(dtype, [&](auto type) {
    using T = decltype(type);
    for (int64_t i = 0; i < count; ++i) {
      const auto value = static_cast<typename Arithmetic<T>::type>(random_bits()() % 256);
      static_cast<T*>(memory)[i] = Arithmetic<T>::store(value);
    }
  });
  return memory;
}

struct Ids {
  Keep keep;
  int64_t bytes;  // of all
  int64_t seen;   // tokens that some image keeps
};

Ids random_keep_ids() {
  const std::vector<int64_t> ids = random_ids(kSize);
  auto* memory = static_cast<int64_t*>(device_memory(ids.size() * kInt64));
  std::copy(ids.begin(), ids.end(), memory);
  return {{memory, K, 1}, B * K * kInt64, static_cast<int64_t>(std::set<int64_t>(ids.begin(), ids.end()).size())};
}

struct Case {
  const char* op;
  const char* pass;
  std::string shape, dtype;
};

// ideal: bytes that each launch has to move at least, every byte once.
void count(const Case& one, const std::vector<int64_t>& ideal, const std::function<void()>& run) {
  const auto launches = host_cuda::count_traffic(run);
  BIMKERN_CHECK(launches.size() == ideal.size(), one.op, " ", one.pass, ": expected ", ideal.size(), " launches, got ",
                launches.size());
  for (size_t i = 0; i < launches.size(); ++i) {
    const host_cuda::LaunchTraffic& launch = launches[i];
    std::printf(R"({"op": "%s", "pass": "%s", "shape": "%s", "dtype": "%s", "kernel": %)" PRIuPTR
                R"(, "ideal": %)" PRId64 R"(, "block_sectors": %)" PRIu64 R"(, "launch_sectors": %)" PRIu64
                R"(, "uninitialized": %)" PRIu64 R"(, "instructions": [)",
                one.op, one.pass, one.shape.c_str(), one.dtype.c_str(), reinterpret_cast<uintptr_t>(launch.kernel),
                ideal[i], launch.block_sectors, launch.launch_sectors, launch.uninitialized);
    const char* comma = "";
    for (const host_cuda::Instruction& at : launch.instructions) {
      constexpr const char* kAccess[] = {"read", "write", "atomic"};
      std::printf(R"(%s{"address": %)" PRIuPTR R"(, "space": "%s", "access": "%s", "width": %u, "warps": %)" PRIu64
                  R"(, "bytes": %)" PRIu64 R"(, "cost": %)" PRIu64 R"(, "least_cost": %)" PRIu64 "}",
                  comma, at.address, at.shared ? "shared" : "global", kAccess[static_cast<int>(at.access)], at.width,
                  at.warps, at.bytes, at.cost, at.least_cost);
      comma = ", ";
    }
    std::printf("]}\n");
  }
  host_cuda::free_device_memory();
}

void gather() {
  const std::string shape = message("B=", B, " R=", R, " N=", N, " K=", K, " D=", D);
  for (const DType dtype : kFloats) {
    const int64_t row = D * bytes_of(dtype);
    const Ids ids = random_keep_ids();
    const void* tokens = random_values(dtype, B * (R + N) * D);
    const void* pos = random_values(dtype, N * D);
    void* out = device_memory(B * (R + K) * row);
    count({"gather_tokens", "fwd", shape, name_of(dtype)}, {row * (2 * B * (R + K) + ids.seen) + ids.bytes},
          [&] { gather_tokens_cuda({dtype, kSize, ids.keep, tokens, (R + N) * D, D, pos, D, out}, nullptr); });
  }
  for (const DType dtype : kFloats) {
    const int64_t row = D * bytes_of(dtype);
    const Ids ids = random_keep_ids();
    const void* grad = random_values(dtype, B * (R + K) * D);
    void* result = device_memory(B * (R + N) * row);
    GatherTokensBwd args{dtype, kSize, ids.keep, grad, (R + K) * D, D, result};
    count({"gather_tokens", "bwd", shape, name_of(dtype)}, {row * B * (R + K + R + N) + ids.bytes},
          [&] { gather_tokens_bwd_cuda(args, nullptr); });
  }
  for (const DType dtype : kFloats) {
    const int64_t row = D * bytes_of(dtype);
    const Ids ids = random_keep_ids();
    const void* grad = random_values(dtype, B * (R + K) * D);
    GatherTokensBwd args{dtype, kSize, ids.keep, grad, (R + K) * D, D, device_memory(N * row)};
    args.positions = static_cast<int32_t*>(device_memory(B * N * kInt32));
    const int64_t positions = B * N * kInt32;
    count({"gather_tokens", "bwd_pos", shape, name_of(dtype)}, {ids.bytes + positions, row * (B * K + N) + positions},
          [&] { gather_tokens_bwd_pos_cuda(args, nullptr); });
  }
  for (const DType dtype : kFloats) {  // two masks of each image
    const int64_t row = D * bytes_of(dtype);
    const Ids ids = random_keep_ids();
    const void* grad = random_values(dtype, B * (R + K) * D);
    GatherTokensBwd args{dtype, kSize, ids.keep, grad, (R + K) * D, D, device_memory(B / 2 * (R + N) * row)};
    args.masks = 2;
    args.positions = static_cast<int32_t*>(device_memory(B * N * kInt32));
    const int64_t positions = B * N * kInt32;
    count({"gather_tokens", "bwd_masks", shape, name_of(dtype)},
          {ids.bytes + positions, row * (B * (R + K) + B / 2 * (R + N)) + positions},
          [&] { gather_tokens_bwd_cuda(args, nullptr); });
  }
}

void restore() {
  const std::string shape = message("B=", B, " R=", R, " N=", N, " K=", K, " D=", D);
  for (const DType dtype : kFloats) {
    const int64_t row = D * bytes_of(dtype);
    const Ids ids = random_keep_ids();
    const void* visible = random_values(dtype, B * (R + K) * D);
    const void* mask_token = random_values(dtype, D);
    const void* pos = random_values(dtype, N * D);
    void* out = device_memory(B * (R + N) * row);
    count({"restore_tokens", "fwd", shape, name_of(dtype)}, {row * (B * (R + K) + 1 + N + B * (R + N)) + ids.bytes},
          [&] {
            restore_tokens_cuda({dtype, kSize, ids.keep, visible, (R + K) * D, D, mask_token, pos, D, out}, nullptr);
          });
  }
  for (const DType dtype : kFloats) {
    const int64_t row = D * bytes_of(dtype);
    const int64_t sums = N * D * std::max(kFloat, bytes_of(dtype));
    const Ids ids = random_keep_ids();
    const void* grad = random_values(dtype, B * (R + N) * D);
    void* grad_visible = device_memory(B * (R + K) * row);
    void* grad_mask_token = device_memory(row);
    void* grad_pos = device_memory(N * row);
    const int64_t positions = B * N * kInt32;
    const RestoreTokensBwd args{dtype,
                                kSize,
                                ids.keep,
                                grad,
                                (R + N) * D,
                                D,
                                grad_visible,
                                grad_mask_token,
                                grad_pos,
                                device_memory(sums),
                                static_cast<int32_t*>(device_memory(positions))};
    count({"restore_tokens", "bwd", shape, name_of(dtype)},
          {ids.bytes + positions, row * (B * (R + N) + B * (R + K) + N) + sums + positions, sums + row},
          [&] { restore_tokens_bwd_cuda(args, nullptr); });
  }
}

void embed_visible() {
  constexpr int64_t kPixels = kChannels * kImage * kImage;
  const std::string patches = message("B=", B, " N=", N, " K=", K, " p=", kPatch);
  const std::pair<DType, DType> kinds[] = {{DType::kUInt8, DType::kBFloat16},
                                           {DType::kUInt8, DType::kFloat32},
                                           {DType::kFloat32, DType::kFloat32},
                                           {DType::kFloat32, DType::kBFloat16}};
  for (const auto& [from, to] : kinds) {
    const TokenSizes size{B, 0, N, K, D};
    const Ids ids = random_keep_ids();
    const void* images = random_values(from, B * kPixels);
    const void* mean = random_values(DType::kFloat32, kChannels);
    const void* std = random_values(DType::kFloat32, kChannels);
    void* out = device_memory(B * K * D * bytes_of(to));
    const int64_t ideal = B * K * D * (bytes_of(from) + bytes_of(to)) + ids.bytes + 2 * kChannels * kFloat;
    count({"embed_visible", "patches", patches, message(name_of(from), " to ", name_of(to))}, {ideal},
          [&, from = from, to = to] {
            visible_patches_cuda(
                {from, to, size, ids.keep, kPatch, kSide, images, kPixels, kImage * kImage, kImage, 1, mean, std, out},
                nullptr);
          });
  }
  const std::string shape = message("B=", B, " R=", R, " N=", N, " K=", K, " D=", D);
  for (const DType from : {DType::kFloat32, DType::kBFloat16}) {
    const Ids ids = random_keep_ids();
    const void* product = random_values(from, B * K * D);
    const void* bias = random_values(DType::kFloat32, D);
    const void* pos = random_values(DType::kFloat32, N * D);
    const void* prefix = random_values(DType::kFloat32, R * D);
    void* out = device_memory(B * (R + K) * D * kFloat);
    const int64_t ideal = B * K * D * bytes_of(from) + D * kFloat * (B * (R + K) + 1 + ids.seen + R) + ids.bytes;
    count({"embed_visible", "embeddings", shape, message(name_of(from), " to float32")}, {ideal}, [&] {
      add_embeddings_cuda({from, DType::kFloat32, kSize, ids.keep, product, bias, pos, D, prefix, D, out}, nullptr);
    });
  }
}

void hog() {
  struct Kind {
    int64_t images, side;
    int32_t bins;
    std::vector<int64_t> cells;
  };
  const Kind kinds[] = {{B, 216, 9, {6}},
                        {B, kImage, 9, {7}},
                        {B, kImage, 9, {14}},
                        {B, kImage, 9, {8}},
                        {B, kImage, 9, {16}},
                        {B, kImage, 9, {4, 8, 16, 32}},
                        {B, kImage, 18, {4, 8, 16, 32}},
                        {1, 72, 9, {8}}};  // the last block is not full
  for (const DType dtype : {DType::kUInt8, DType::kBFloat16, DType::kFloat32}) {
    for (const auto& [images, side, bins, cells] : kinds) {
      std::string shape = message("B=", images, " H=", side, " bins=", bins, " cells=");
      Hog args{};
      args.dtype = dtype;
      args.out_dtype = DType::kFloat32;
      args.images = images;
      args.channels = kChannels;
      args.height = args.width = args.row_stride = side;
      args.channel_stride = side * side;
      args.image_stride = kChannels * side * side;
      args.column_stride = 1;
      args.pixels = random_values(dtype, images * args.image_stride);
      args.bins = bins;
      int64_t ideal = images * args.image_stride * bytes_of(dtype);
      for (const int64_t cell : cells) {
        const int64_t bytes = images * kChannels * bins * (side / cell) * (side / cell) * kFloat;
        ideal += bytes;
        args.level[args.num_levels++] = HogLevel{cell, 1, 0, 0, device_memory(bytes)};
        shape += message(args.num_levels > 1 ? "," : "", cell);
      }
      count({"hog", "fwd", shape, name_of(dtype)}, {ideal}, [&] { hog_cuda(args, nullptr); });
    }
  }
}

void masks() {
  const Ids ids = random_keep_ids();
  auto* mask = static_cast<float*>(device_memory(B * N * kFloat));
  const std::string shape = message("B=", B, " N=", N, " K=", K);
  count({"keep_to_mask", "fwd", shape, "float32"}, {ids.bytes + B * N * kFloat},
        [&] { keep_to_mask_cuda({B, N, K, ids.keep, mask}, nullptr); });
  const auto* sample_ids = static_cast<const int64_t*>(random_values(DType::kFloat64, B));
  auto* keep = static_cast<int64_t*>(device_memory(B * K * kInt64));
  count({"random_keep", "fwd", shape, "int64"}, {B * kInt64 + B * K * kInt64},
        [&] { random_keep_cuda({B, N, N, K, PhiloxKey{{1, 2}}, sample_ids, 1, {}, keep, nullptr}, nullptr); });
}

void scale_masks() {
  for (const auto& [average, repeat] : {std::pair<int64_t, int64_t>{1, 4}, {1, 2}, {2, 1}}) {
    const int64_t side = kSide / average * repeat;
    const void* mask = random_values(DType::kFloat32, B * N);
    void* out = device_memory(B * side * side * kFloat);
    const ScaleMask args{DType::kFloat32, B, kSide, kSide, average, repeat, mask, N, out};
    count({"scale_mask", "fwd", message("B=", B, " N=", N, " s=", average, " r=", repeat), "float32"},
          {B * (N + side * side) * kFloat}, [&] { scale_mask_cuda(args, nullptr); });
  }
}

}  // namespace

int main() {
  random_bits().seed(5);
  gather();
  restore();
  embed_visible();
  hog();
  masks();
  scale_masks();
}
