// The entries of the CPU kernels, served by the CUDA kernels on the host: a test linked with this tests those.
#include "ops/embed_visible.h"
#include "ops/gather_tokens.h"
#include "ops/hog.h"
#include "ops/keep_to_mask.h"
#include "ops/random_keep.h"
#include "ops/restore_tokens.h"
#include "ops/scale_mask.h"

namespace bimkern {
namespace {

// Arguments with memory for what CUDA kernels keep between two launches, which those of the CPU have no need of.
template <typename Args>
struct WithScratch {
  Args args;
  std::vector<int32_t> positions;
};

template <typename Args>
WithScratch<Args> with_scratch(const Args& args) {
  WithScratch<Args> result{args, std::vector<int32_t>(args.size.images * args.size.tokens)};
  result.args.positions = result.positions.data();
  return result;
}

}  // namespace

void gather_tokens(const GatherTokens& args, const Parallel&, Simd) {
  check_keep("gather_tokens", args.keep, args.size);
  gather_tokens_cuda(args, nullptr);
}

void gather_tokens_bwd(const GatherTokensBwd& args, const Parallel&, Simd) {
  check_keep("gather_tokens_bwd", args.keep, args.size);
  gather_tokens_bwd_cuda(with_scratch(args).args, nullptr);
}

void gather_tokens_bwd_pos(const GatherTokensBwd& args, const Parallel&, Simd) {
  check_keep("gather_tokens_bwd_pos", args.keep, args.size);
  gather_tokens_bwd_pos_cuda(with_scratch(args).args, nullptr);
}

void restore_tokens(const RestoreTokens& args, const Parallel&, Simd) {
  check_keep("restore_tokens", args.keep, args.size);
  restore_tokens_cuda(args, nullptr);
}

void restore_tokens_bwd(const RestoreTokensBwd& args, const Parallel&, Simd) {
  check_keep("restore_tokens_bwd", args.keep, args.size);
  restore_tokens_bwd_cuda(with_scratch(args).args, nullptr);
}

void visible_patches(const VisiblePatches& args, const Parallel&, Simd) {
  check_keep("embed_visible", args.keep, args.size);
  visible_patches_cuda(args, nullptr);
}

void add_embeddings(const AddEmbeddings& args, const Parallel&, Simd) {
  if (args.pos != nullptr) {
    check_keep("embed_visible", args.keep, args.size);
  }
  add_embeddings_cuda(args, nullptr);
}

void keep_to_mask(const KeepToMask& args, const Parallel&) {
  check_keep("keep_to_mask", args.keep, {args.images, 0, args.tokens, args.kept, 0});
  keep_to_mask_cuda(args, nullptr);
}

void random_keep(const RandomKeep& args, const Parallel&, Simd) {
  if (args.parent.ids != nullptr) {
    check_keep("random_keep", args.parent, {args.images, 0, args.tokens, args.candidates, 0}, "parent");
  }
  random_keep_cuda(args, nullptr);
}

void scale_mask(const ScaleMask& args, const Parallel&) { scale_mask_cuda(args, nullptr); }

void hog(const Hog& args, const Parallel&, Simd) { hog_cuda(args, nullptr); }

}  // namespace bimkern
