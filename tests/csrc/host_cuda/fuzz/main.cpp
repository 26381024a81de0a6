// Every CUDA kernel of the core, run on the host, against the CPU kernels: random sizes, strides, dtypes,
// and alignments broken one at a time.
//   fuzz_host_cuda [ROUNDS] [SEED] [OP]
#include <map>
#include <string>

#include "core/error.h"
#include "expect.h"
#include "fuzz.h"
#include "host_cuda.h"
#include "random_case.h"

using namespace bimkern;

namespace {

using Fuzz = void (*)();

void run_case(const std::string& op, Fuzz fuzz, uint32_t seed) {
  random_bits().seed(seed);
  host_cuda::set_order(static_cast<host_cuda::Order>(seed % 3), seed);
  const int before = failures();
  try {
    fuzz();
  } catch (const Error& error) {
    mismatch(error.what());
  }
  if (failures() > before) {
    std::fprintf(stderr, "repeat it by: fuzz_host_cuda 1 %u %s\n", seed, op.c_str());
  }
}

// Every shift and gap of a case broken once, and none of them at last.
void run_directed(const std::string& op, Fuzz fuzz, uint32_t seed) {
  directed() = Directed{true, 0, 0};
  while (directed().broken <= directed().asked) {
    directed().asked = 0;
    run_case(op, fuzz, seed);
    ++directed().broken;
  }
  directed().on = false;
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, Fuzz> ops = {{"embed_visible", fuzz_embed_visible},
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
  for (const auto& [op, fuzz] : ops) {
    if (!only.empty() && op != only) {
      continue;
    }
    constexpr int kRoundsPerDirected = 10;
    for (int round = 0; round < rounds; ++round) {
      run_case(op, fuzz, seed + static_cast<uint32_t>(round));
      if (round % kRoundsPerDirected == 0) {
        run_directed(op, fuzz, seed + static_cast<uint32_t>(round));
      }
    }
  }
  return failures() > 0;
}
