// Stands in for the CUDA files where the library is built without nvcc: everything links, and nothing runs.
#include "core/error.h"
#include "ops/gather_tokens.h"
#include "ops/hog.h"
#include "ops/restore_tokens.h"

namespace bimkern {
namespace {

[[noreturn]] void missing(const char* op) { throw Error(message(op, ": this library was built without CUDA")); }

}  // namespace

void gather_tokens_cuda(const GatherTokens&, void*) { missing("gather_tokens"); }
void gather_tokens_bwd_cuda(const GatherTokensBwd&, void*) { missing("gather_tokens_bwd"); }
void gather_tokens_bwd_pos_cuda(const GatherTokensBwd&, void*) { missing("gather_tokens_bwd_pos"); }
void hog_cuda(const Hog&, void*) { missing("hog"); }
void restore_tokens_cuda(const RestoreTokens&, void*) { missing("restore_tokens"); }
void restore_tokens_bwd_cuda(const RestoreTokensBwd&, void*) { missing("restore_tokens_bwd"); }

}  // namespace bimkern
