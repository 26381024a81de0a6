// CPU kernel of keep_to_mask.h, bound by memory: reads the ids and writes the mask once.
//
// Parallel over images: a row is filled with ones, then zeros are put into it while it lies in the first cache.
#include "ops/keep_to_mask.h"

#include <algorithm>

namespace bimkern {

void keep_to_mask(const KeepToMask& args, const Parallel& parallel) {
  check_keep("keep_to_mask", args.keep, {args.images, 0, args.tokens, args.kept, 0});
  parallel(args.images, grain_rows(args.tokens * static_cast<int64_t>(sizeof(float))), [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      float* row = args.mask + image * args.tokens;
      std::fill_n(row, args.tokens, 1.0f);
      const int64_t* ids = args.keep.ids + image * args.keep.image_stride;
      for (int64_t k = 0; k < args.kept; ++k) {
        row[ids[k * args.keep.token_stride]] = 0.0f;
      }
    }
  });
}

}  // namespace bimkern
