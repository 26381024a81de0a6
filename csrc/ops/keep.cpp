#include "ops/keep.h"

#include <algorithm>

#include "core/error.h"

namespace bimkern {
namespace {

// Whether the ids of an image ascend in [0, N), as those of random_keep do: then they are right, and none is repeated.
bool ascends(const int64_t* ids, int64_t stride, const TokenSizes& size) {
  int64_t previous = -1;
  for (int64_t k = 0; k < size.kept; ++k) {
    if (ids[k * stride] <= previous) {
      return false;
    }
    previous = ids[k * stride];
  }
  return previous < size.tokens;
}

// The positions of one image, [N].
void locate_tokens(const char* op, const Keep& keep, const TokenSizes& size, const char* name, int64_t image,
                   int32_t* positions) {
  std::fill_n(positions, size.tokens, kMasked);
  for (int64_t k = 0; k < size.kept; ++k) {
    const int64_t id = keep.ids[image * keep.image_stride + k * keep.token_stride];
    BIMKERN_CHECK(id >= 0 && id < size.tokens, op, ": ", name, " must hold ids in [0, N=", size.tokens, "), got ", id,
                  " in image ", image);
    BIMKERN_CHECK(positions[id] == kMasked, op, ": ", name, " must not repeat an id within an image, got ", id,
                  " twice in image ", image);
    positions[id] = static_cast<int32_t>(k);
  }
}

}  // namespace

void check_keep(const char* op, const Keep& keep, const TokenSizes& size, const char* name) {
  std::vector<int32_t> positions;
  for (int64_t image = 0; image < size.images; ++image) {
    if (!ascends(keep.ids + image * keep.image_stride, keep.token_stride, size)) {
      positions.resize(size.tokens);
      locate_tokens(op, keep, size, name, image, positions.data());
    }
  }
}

std::vector<int32_t> positions_of(const char* op, const Keep& keep, const TokenSizes& size) {
  std::vector<int32_t> positions(size.images * size.tokens);
  for (int64_t image = 0; image < size.images; ++image) {
    locate_tokens(op, keep, size, "keep", image, positions.data() + image * size.tokens);
  }
  return positions;
}

}  // namespace bimkern
