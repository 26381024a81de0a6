// What the bindings of ops on tokens share: rows [B, *, D] that go with a keep [B, K].
#pragma once

#include <limits>

#include "ops/keep.h"

#include "bridge.h"

namespace bimkern {

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && a.get_device_index() == b.get_device_index();
}

// The public Python function checks for users; here only what the kernels would read or write beyond.
inline void check_sizes(const char* op, const Tensor& rows, const Tensor& keep, int64_t num_tokens, int64_t num_prefix,
                        int64_t num_masks = 1) {
  STD_TORCH_CHECK(rows.dim() == 3 && keep.dim() == 2 && num_masks >= 1 && rows.size(0) * num_masks == keep.size(0), op,
                  ": expected rows [B, *, D] and keep [B*M, K] with M=", num_masks, ", got ", rows.dim(), " and ",
                  keep.dim(), " dimensions");
  STD_TORCH_CHECK(keep.scalar_type() == torch::headeronly::ScalarType::Long, op, ": keep must be int64");
  STD_TORCH_CHECK(same_device(keep, rows), op, ": keep must be on the device of the rows");
  STD_TORCH_CHECK(num_tokens >= 0 && num_prefix >= 0, op, ": num_tokens and num_prefix must be at least 0, got ",
                  num_tokens, " and ", num_prefix);
  STD_TORCH_CHECK(num_tokens <= std::numeric_limits<int32_t>::max() && keep.size(1) <= num_tokens, op,
                  ": keep must hold at most N=", num_tokens, " ids per image, N below 2**31, got K=", keep.size(1));
}

inline void check_pos(const char* op, const Tensor& pos, const Tensor& rows, int64_t num_tokens) {
  STD_TORCH_CHECK(pos.dim() == 2 && pos.size(0) == num_tokens && pos.size(1) == rows.size(2), op,
                  ": pos must be [N, D]");
  STD_TORCH_CHECK(pos.scalar_type() == rows.scalar_type() && same_device(pos, rows), op,
                  ": pos must have the dtype and device of the rows");
}

inline TokenSizes sizes(const Tensor& rows, const Tensor& keep, int64_t num_tokens, int64_t num_prefix) {
  return TokenSizes{rows.size(0), num_prefix, num_tokens, keep.size(1), rows.size(2)};
}

inline Keep keep_of(const Tensor& keep) { return Keep{keep.const_data_ptr<int64_t>(), keep.stride(0), keep.stride(1)}; }

// Scratch of the CUDA kernels, for the position of every token.
inline Tensor make_places(const Tensor& keep, int64_t num_tokens) {
  return make_empty(keep, {keep.size(0), num_tokens}, torch::headeronly::ScalarType::Int);
}

}  // namespace bimkern
