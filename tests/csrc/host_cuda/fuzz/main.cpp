// Every CUDA kernel of the core, run on the host, against the CPU kernels: random sizes, strides, alignments, dtypes.
//   fuzz_host_cuda [ROUNDS] [SEED] [OP]
#include <map>
#include <string>

#include "core/error.h"
#include "expect.h"
#include "fuzz.h"
#include "host_cuda.h"
#include "random_case.h"

using namespace bimkern;

int main(int argc, char** argv) {
  const std::map<std::string, void (*)()> ops = {{"embed_visible", fuzz_embed_visible},
                                                 {"gather_tokens", fuzz_gather_tokens},
                                                 {"hog", fuzz_hog},
                                                 {"keep_to_mask", fuzz_keep_to_mask},
                                                 {"random_keep", fuzz_random_keep},
                                                 {"restore_tokens", fuzz_restore_tokens},
                                                 {"scale_mask", fuzz_scale_mask}};
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 60;
  const auto seed = static_cast<uint32_t>(argc > 2 ? std::strtoul(argv[2], nullptr, 10) : std::random_device{}());
  const std::string only = argc > 3 ? argv[3] : "";
  if (!only.empty() && ops.count(only) == 0) {
    std::fprintf(stderr, "no op %s\n", only.c_str());
    return 2;
  }
  std::printf("seed %u\n", seed);
  std::fflush(stdout);  // a sanitizer may end the process
  for (const auto& [name, fuzz] : ops) {
    if (!only.empty() && name != only) {
      continue;
    }
    for (int round = 0; round < rounds; ++round) {
      const uint32_t round_seed = seed + static_cast<uint32_t>(round);
      const int before = failures();
      random_bits().seed(round_seed);
      host_cuda::set_order(static_cast<host_cuda::Order>(round_seed % 3), round_seed);
      try {
        fuzz();
      } catch (const Error& error) {
        mismatch(error.what());
      }
      if (failures() > before) {
        std::fprintf(stderr, "repeat it by: fuzz_host_cuda 1 %u %s\n", round_seed, name.c_str());
      }
    }
  }
  return failures() > 0;
}
