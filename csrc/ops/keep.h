// Which tokens of each image stay: what every op on tokens takes, and the other way round: the position of every token.
//
// Letters: B images, R prefix tokens, N tokens, K kept tokens, D width. All strides are in elements; D has stride 1
// wherever a pointer has no stride for it, and a pointer without strides is contiguous. Pointers into empty tensors may
// be null.
#pragma once

#include <vector>

#include "core/common.h"

namespace bimkern {

// The values lie in [0, N), in any order, none twice in an image.
struct Keep {
  const int64_t* ids;  // [B, K]
  int64_t image_stride;
  int64_t token_stride;
};

struct TokenSizes {
  int64_t images;  // B
  int64_t prefix;  // R
  int64_t tokens;  // N
  int64_t kept;    // K
  int64_t width;   // D
};

// Of a token that is not kept.
constexpr int32_t kMasked = -1;

// Both for host memory only. They throw Error, which calls keep by its name, where a value is out of range or repeated.
void check_keep(const char* op, const Keep& keep, const TokenSizes& size, const char* name = "keep");

// The position of every token in keep, [B, N], or kMasked.
std::vector<int32_t> positions_of(const char* op, const Keep& keep, const TokenSizes& size);

}  // namespace bimkern
