// Which tokens of each image stay: what every op on tokens takes, and how its kernels look a token up.
//
// Letters: B images, R prefix tokens, N tokens, K kept tokens, D width. All strides are in elements; D has stride 1
// wherever a pointer has no stride for it, and a pointer without strides is contiguous. Pointers into empty tensors may
// be null.
#pragma once

#include "core/common.h"

namespace bimkern {

// The values ascend within an image and lie in [0, N).
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

// Host memory only. Throws Error, which calls keep by its name, where a value is out of range, repeated or out of
// order.
void check_keep(const char* op, const Keep& keep, const TokenSizes& size, const char* name = "keep");

// Index of the first of count ascending ids that is not below id; count if all are.
BIMKERN_HD int64_t lower_bound(const int64_t* ids, int64_t stride, int64_t count, int64_t id) {
  int64_t first = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    const bool below = ids[(first + half) * stride] < id;
    first = below ? first + half + 1 : first;
    count = below ? count - half - 1 : half;
  }
  return first;
}

// Place of id among count ascending ids; -1 if it is not there.
BIMKERN_HD int64_t find(const int64_t* ids, int64_t stride, int64_t count, int64_t id) {
  const int64_t place = lower_bound(ids, stride, count, id);
  return place < count && ids[place * stride] == id ? place : -1;
}

}  // namespace bimkern
