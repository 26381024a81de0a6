// Stands in for the CUDA files where the library is built without nvcc: everything links, and nothing runs.
#include "core/error.h"
#include "ops/embed_visible.h"
#include "ops/gather_tokens.h"
#include "ops/hog.h"
#include "ops/keep_to_mask.h"
#include "ops/random_keep.h"
#include "ops/restore_tokens.h"
#include "ops/scale_mask.h"

namespace bimkern {
namespace {

[[noreturn]] void missing(const char* op) { throw Error(message(op, ": this library was built without CUDA")); }

}  // namespace

void add_embeddings_cuda(const AddEmbeddings&, void*) { missing("embed_visible"); }
void visible_patches_cuda(const VisiblePatches&, void*) { missing("embed_visible"); }
void gather_tokens_cuda(const GatherTokens&, void*) { missing("gather_tokens"); }
void gather_tokens_bwd_cuda(const GatherTokensBwd&, void*) { missing("gather_tokens_bwd"); }
void gather_tokens_bwd_pos_cuda(const GatherTokensBwd&, void*) { missing("gather_tokens_bwd_pos"); }
void hog_cuda(const Hog&, void*) { missing("hog"); }
void keep_to_mask_cuda(const KeepToMask&, void*) { missing("keep_to_mask"); }
void random_keep_cuda(const RandomKeep&, void*) { missing("random_keep"); }
void restore_tokens_cuda(const RestoreTokens&, void*) { missing("restore_tokens"); }
void restore_tokens_bwd_cuda(const RestoreTokensBwd&, void*) { missing("restore_tokens_bwd"); }
void scale_mask_cuda(const ScaleMask&, void*) { missing("scale_mask"); }

}  // namespace bimkern
