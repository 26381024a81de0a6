// One random case of each op's CUDA kernels against its CPU kernels.
#pragma once

namespace bimkern {

void fuzz_gather_tokens();
void fuzz_restore_tokens();
void fuzz_embed_visible();
void fuzz_hog();
void fuzz_keep_to_mask();
void fuzz_random_keep();
void fuzz_scale_mask();

}  // namespace bimkern
