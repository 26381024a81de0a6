// CPU kernel of pixel_targets.h, parallel over patches: every pixel is read once, every value written once.
#include "ops/pixel_targets.h"

#include <algorithm>

#include "ops/patch_reader.h"

namespace bimkern {
namespace {

template <typename A>
void write_patches(const PixelTargets& args, const Parallel& parallel, Simd simd) {
  const int64_t length = args.patches.length();
  A* out = static_cast<A*>(args.out);
  parallel(args.patches.count(), grain_rows(length * static_cast<int64_t>(sizeof(A))), [&](int64_t begin, int64_t end) {
    PatchReader<A> reader(args.patches);
    read_patches(reader, simd, begin, end, end - 1, out + begin * length);
  });
}

}  // namespace

template <typename A>
void read_patches(PatchReader<A>& reader, Simd simd, int64_t begin, int64_t end, int64_t next, A* out) {
  vectorised(simd, [&](auto set) BIMKERN_INLINE {
    for (int64_t i = begin; i < end; ++i) {
      reader.prefetch(i + 1 < end ? i + 1 : next);
      reader.read(set, i, out + (i - begin) * reader.length());
    }
  });
}

template void read_patches(PatchReader<float>&, Simd, int64_t, int64_t, int64_t, float*);
template void read_patches(PatchReader<double>&, Simd, int64_t, int64_t, int64_t, double*);

void pixel_targets(const PixelTargets& args, const Parallel& parallel, Simd simd) {
  if (args.patches.length() > 0) {
    dispatch_wide(args.dtype, [&](auto wide) { write_patches<decltype(wide)>(args, parallel, simd); });
  }
}

}  // namespace bimkern
