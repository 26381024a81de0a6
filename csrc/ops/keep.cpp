#include "ops/keep.h"

#include "core/error.h"

namespace bimkern {

void check_keep(const char* op, const Keep& keep, const TokenSizes& size, const char* name) {
  for (int64_t image = 0; image < size.images; ++image) {
    int64_t previous = -1;
    for (int64_t k = 0; k < size.kept; ++k) {
      const int64_t id = keep.ids[image * keep.image_stride + k * keep.token_stride];
      BIMKERN_CHECK(id >= 0 && id < size.tokens, op, ": ", name, " must hold ids in [0, N=", size.tokens, "), got ", id,
                    " in image ", image);
      BIMKERN_CHECK(id > previous, op, ": ", name, " must ascend without repeats within an image, got ", id, " after ",
                    previous, " in image ", image);
      previous = id;
    }
  }
}

}  // namespace bimkern
