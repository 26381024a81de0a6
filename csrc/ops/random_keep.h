// random_keep: which tokens of each image stay visible, as a function of (seed, step, sample id) alone.
//
// Every token of a sample has a random 32-bit word; the K tokens with the smallest words stay, equal words in the order
// of their positions. Letters and strides: keep.h; P candidates, among which is drawn.
#pragma once

#include "core/parallel.h"
#include "core/philox.h"
#include "core/simd.h"
#include "ops/keep.h"

namespace bimkern {

struct RandomKeep {
  int64_t images;             // B
  int64_t tokens;             // N, at most kMaxCandidates
  int64_t candidates;         // P; N without a parent
  int64_t kept;               // K, at most P
  PhiloxKey key;              // step_key(seed, step)
  const int64_t* sample_ids;  // [B]
  int64_t sample_stride;
  Keep parent;      // [B, P]; ids null: all tokens are candidates
  int64_t* keep;    // [B, K], ascends within an image
  int64_t* within;  // [B, K], positions of keep inside parent; null without a parent
};

constexpr int64_t kMaxCandidates = 0x7fffffff;  // positions take half of a 64-bit key
constexpr uint32_t kMaskStream = 0;             // second counter word: what else draws from a sample id uses others
constexpr uint32_t kStepStream = 6;             // the same for keys
constexpr int kWordsPerBlock = 4;               // of Philox: tokens that one counter serves

// What a step draws by: the seed itself at step 0, and two words drawn from it at others.
inline PhiloxKey step_key(PhiloxKey seed, uint64_t step) {
  if (step == 0) {
    return seed;
  }
  const PhiloxCounter words =
      philox4x32_10({{static_cast<uint32_t>(step), kStepStream, static_cast<uint32_t>(step >> 32), 0}}, seed);
  return PhiloxKey{{words.word[0], words.word[1]}};
}

// The counter of the tokens 4 * block to 4 * block + 3.
BIMKERN_HD PhiloxCounter token_counter(int64_t sample_id, int64_t block) {
  const auto id = static_cast<uint64_t>(sample_id);
  return PhiloxCounter{
      {static_cast<uint32_t>(block), kMaskStream, static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32)}};
}

// The word of one token.
BIMKERN_HD uint32_t token_word(int64_t sample_id, int64_t token, PhiloxKey key) {
  const PhiloxCounter words = philox4x32_10(token_counter(sample_id, token / kWordsPerBlock), key);
  const int64_t which = token % kWordsPerBlock;  // selected, not indexed: registers have no addresses
  return which < 2 ? (which == 0 ? words.word[0] : words.word[1]) : (which == 2 ? words.word[2] : words.word[3]);
}

// CPU. The values of parent are checked first; throws Error.
void random_keep(const RandomKeep& args, const Parallel& parallel, Simd simd);

// CUDA, on the current device; stream is a cudaStream_t. Ids of parent that are out of range are drawn like others.
void random_keep_cuda(const RandomKeep& args, void* stream);

}  // namespace bimkern
