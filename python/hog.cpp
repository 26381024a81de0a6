// torch op hog. Schema: bimkern/ops/hog.py.
#include "ops/hog.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "bridge.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

DType pixel_type(const Tensor& images) {
  return images.scalar_type() == ScalarType::Byte ? DType::kUInt8 : dtype_of("hog", images);
}

// The public Python function checks for users; here only what the kernels would read or write beyond.
void check(const Tensor& images, const std::vector<int64_t>& cells, int64_t bins, int64_t window,
           const std::vector<double>& bias, int64_t patch, ScalarType dtype) {
  STD_TORCH_CHECK(images.dim() == 4, "hog: images must be [B, C, H, W], got ", images.dim(), " dimensions");
  STD_TORCH_CHECK(images.scalar_type() != ScalarType::Double, "hog: images must not be float64");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
                  "hog: dtype must be float32 or bfloat16");
  STD_TORCH_CHECK(bins >= 1 && bins <= kMaxHogBins, "hog: bins must be in [1, ", kMaxHogBins, "], got ", bins);
  STD_TORCH_CHECK(!cells.empty() && cells.size() <= kMaxHogSizes, "hog: expected 1 to ", kMaxHogSizes,
                  " cell sizes, got ", cells.size());
  STD_TORCH_CHECK(bias.empty() || bias.size() == 2 * cells.size(), "hog: bias must hold two numbers per cell size");
  const int64_t height = images.size(2);
  const int64_t width = images.size(3);
  STD_TORCH_CHECK(height >= 2 && width >= 2, "hog: H and W must be at least 2, got ", height, " and ", width);
  STD_TORCH_CHECK(height * width * std::max<int64_t>(images.size(1), 1) <= kMaxHogPixels, "hog: at most ",
                  kMaxHogPixels, " values an image, got ", images.size(1), " x ", height, " x ", width);
  STD_TORCH_CHECK(window >= 0 && window <= std::min({height, width, int64_t{kMaxHogWindow}}),
                  "hog: window must be in [0, min(H, W, ", kMaxHogWindow, ")], got ", window);
  for (const int64_t cell : cells) {
    const int64_t side = patch == 0 ? cell : patch;
    STD_TORCH_CHECK(cell >= 1 && side >= 1 && side % cell == 0 && height % side == 0 && width % side == 0,
                    "hog: H=", height, " and W=", width,
                    " must be multiples of patch, and patch of cell, got patch=", side, " and cell=", cell);
  }
}

std::vector<Tensor> hog_op(const Tensor& images, const std::vector<int64_t> cells, int64_t bins,
                           const std::optional<int64_t> window_or_none, const std::vector<double> bias,
                           const std::optional<int64_t> patch_or_none, ScalarType dtype) {
  const int64_t window = window_or_none.value_or(0);
  const int64_t patch = patch_or_none.value_or(0);
  check(images, cells, bins, window, bias, patch, dtype);
  Hog args{};
  args.dtype = pixel_type(images);
  args.out_dtype = dtype == ScalarType::BFloat16 ? DType::kBFloat16 : DType::kFloat32;
  args.images = images.size(0);
  args.channels = images.size(1);
  args.height = images.size(2);
  args.width = images.size(3);
  args.pixels = images.const_data_ptr();
  args.image_stride = images.stride(0);
  args.channel_stride = images.stride(1);
  args.row_stride = images.stride(2);
  args.column_stride = images.stride(3);
  args.bins = static_cast<int32_t>(bins);
  args.window = static_cast<int32_t>(window);
  args.num_levels = static_cast<int32_t>(cells.size());

  std::vector<Tensor> outs;
  std::array<size_t, kMaxHogSizes> order{};
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.begin() + args.num_levels,
                   [&](size_t a, size_t b) { return cells[a] < cells[b]; });
  for (const int64_t cell : cells) {
    const int64_t side = patch == 0 ? cell : patch;
    const int64_t length = args.channels * bins * (side / cell) * (side / cell);
    outs.push_back(make_empty(images, {args.images, args.height / side * (args.width / side), length}, dtype));
  }
  for (int32_t i = 0; i < args.num_levels; ++i) {
    const size_t at = order[i];
    HogLevel& level = args.level[i];
    level.cell = cells[at];
    level.group = patch == 0 ? 1 : patch / cells[at];
    level.bias_x = bias.empty() ? 0.0f : static_cast<float>(bias[2 * at]);
    level.bias_y = bias.empty() ? 0.0f : static_cast<float>(bias[2 * at + 1]);
    level.out = outs[at].mutable_data_ptr();
  }
  if (images.is_cuda()) {
    const CudaScope cuda(images);
    hog_cuda(args, cuda.stream());
  } else {
    hog(args, torch_pool(), simd_in_use());
  }
  return outs;
}

void register_ops(torch::stable::detail::StableLibrary& library) { library.impl("hog", TORCH_BOX(&hog_op)); }

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) { bimkern::register_ops(library); }
STABLE_TORCH_LIBRARY_IMPL(bimkern, CUDA, library) { bimkern::register_ops(library); }
