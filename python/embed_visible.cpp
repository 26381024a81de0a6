// torch ops visible_patches and add_embeddings. Schemas: bimkern/ops/embed_visible.py.
#include "ops/embed_visible.h"

#include "keep.h"

namespace bimkern {
namespace {

using torch::headeronly::ScalarType;

// Errors name the op that users call, as those of the kernels do.
constexpr const char* kOp = "embed_visible";

DType dtype_of_pixels(const Tensor& images) {
  return images.scalar_type() == ScalarType::Byte ? DType::kUInt8 : dtype_of(kOp, images);
}

void check_keep_shape(const Tensor& keep, const Tensor& other) {
  STD_TORCH_CHECK(keep.dim() == 2 && keep.size(0) == other.size(0), kOp, ": keep must be [B, K]");
  STD_TORCH_CHECK(keep.scalar_type() == ScalarType::Long, kOp, ": keep must be int64");
  STD_TORCH_CHECK(same_device(keep, other), kOp, ": keep must be on the device of the images");
}

void check_statistics(const char* name, const Tensor& values, const Tensor& images, ScalarType expected) {
  STD_TORCH_CHECK(values.dim() == 1 && values.size(0) == images.size(1), kOp, ": ", name, " must be [C]");
  STD_TORCH_CHECK(values.scalar_type() == expected && same_device(values, images), kOp, ": ", name,
                  " must be of the type that patches are normalized in, on the device of the images");
}

void check_rows(const char* name, const Tensor& rows, const Tensor& out, int64_t count) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) == count && rows.size(1) == out.size(2), kOp, ": ", name,
                  " must be [", count, ", D]");
  STD_TORCH_CHECK(rows.scalar_type() == out.scalar_type() && same_device(rows, out), kOp, ": ", name,
                  " must have the dtype and device of the result");
}

Tensor visible_patches_op(const Tensor& images, const Tensor& keep, const std::optional<Tensor>& mean,
                          const std::optional<Tensor>& std, int64_t patch, ScalarType dtype) {
  STD_TORCH_CHECK(images.dim() == 4 && patch > 0 && images.size(2) % patch == 0 && images.size(3) % patch == 0, kOp,
                  ": images must be [B, C, H, W] with H and W multiples of patch=", patch);
  check_keep_shape(keep, images);
  const int64_t width = images.size(1) * patch * patch;
  Tensor out = make_empty(images, {images.size(0), keep.size(1), width}, dtype);
  VisiblePatches args{};
  args.image_dtype = dtype_of_pixels(images);
  args.dtype = dtype_of(kOp, out);
  args.patch = patch;
  args.columns = images.size(3) / patch;
  args.size = TokenSizes{images.size(0), 0, images.size(2) / patch * args.columns, keep.size(1), width};
  args.keep = keep_of(keep);
  args.images = images.const_data_ptr();
  args.image_stride = images.stride(0);
  args.channel_stride = images.stride(1);
  args.row_stride = images.stride(2);
  args.column_stride = images.stride(3);
  const ScalarType normal = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  std::optional<Tensor> means, stds;
  if (mean) {
    check_statistics("mean", *mean, images, normal);
    means = make_contiguous(*mean);
    args.mean = means->const_data_ptr();
  }
  if (std) {
    check_statistics("std", *std, images, normal);
    stds = make_contiguous(*std);
    args.std = stds->const_data_ptr();
  }
  args.out = out.mutable_data_ptr();
  if (images.is_cuda()) {
    const CudaScope cuda(images);
    visible_patches_cuda(args, cuda.stream());
  } else {
    visible_patches(args, torch_pool(), simd_in_use());
  }
  return out;
}

Tensor add_embeddings_op(const Tensor& product, const Tensor& bias, const Tensor& keep,
                         const std::optional<Tensor>& pos, const std::optional<Tensor>& prefix) {
  const int64_t num_prefix = prefix ? prefix->size(0) : 0;
  STD_TORCH_CHECK(product.dim() == 3 && product.is_contiguous(), kOp, ": product must be contiguous");
  check_keep_shape(keep, product);
  STD_TORCH_CHECK(product.size(1) == keep.size(1), kOp, ": product must be [B, K, D]");
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == product.size(2) && same_device(bias, product), kOp,
                  ": bias must be [D], on the device of the product");
  const ScalarType dtype = bias.scalar_type();
  Tensor out = make_empty(product, {product.size(0), num_prefix + keep.size(1), product.size(2)}, dtype);
  AddEmbeddings args{};
  args.product_dtype = dtype_of(kOp, product);
  args.dtype = dtype_of(kOp, out);
  args.size = TokenSizes{product.size(0), num_prefix, pos ? pos->size(0) : 0, keep.size(1), product.size(2)};
  args.keep = keep_of(keep);
  args.product = product.const_data_ptr();
  const Tensor shift = make_contiguous(bias);
  args.bias = shift.const_data_ptr();
  std::optional<Tensor> pos_rows, prefix_rows;
  if (pos) {
    check_rows("pos", *pos, out, args.size.tokens);
    pos_rows = with_contiguous_rows(*pos);
    args.pos = pos_rows->const_data_ptr();
    args.pos_token_stride = pos_rows->stride(0);
  }
  if (prefix) {
    check_rows("prefix", *prefix, out, num_prefix);
    prefix_rows = with_contiguous_rows(*prefix);
    args.prefix = prefix_rows->const_data_ptr();
    args.prefix_token_stride = prefix_rows->stride(0);
  }
  args.out = out.mutable_data_ptr();
  if (out.is_cuda()) {
    const CudaScope cuda(out);
    add_embeddings_cuda(args, cuda.stream());
  } else {
    add_embeddings(args, torch_pool(), simd_in_use());
  }
  return out;
}

void register_ops(torch::stable::detail::StableLibrary& library) {
  library.impl("visible_patches", TORCH_BOX(&visible_patches_op));
  library.impl("add_embeddings", TORCH_BOX(&add_embeddings_op));
}

}  // namespace
}  // namespace bimkern

STABLE_TORCH_LIBRARY_IMPL(bimkern, CPU, library) { bimkern::register_ops(library); }
STABLE_TORCH_LIBRARY_IMPL(bimkern, CUDA, library) { bimkern::register_ops(library); }
