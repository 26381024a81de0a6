// CPU kernel of random_keep.h, bound by arithmetic; it reads the sample ids and the parent and writes the result once.
//
// Parallel over images. Of an image: the words of all tokens, a few Philox blocks at a time; the K-th smallest of them
// by counting how many lie below a guess, which is soon right since words are uniform; one scan that writes the places
// up to it, which ascend by themselves. Nothing is sorted, and nothing but the scan goes token by token.
#include "ops/random_keep.h"

#include <algorithm>
#include <vector>

#include "core/philox_lanes.h"

namespace bimkern {
namespace {

constexpr int kLaneTokens = kPhiloxLanes * kWordsPerBlock;

// Writes the words of count tokens, rounded up to whole kLaneTokens.
template <typename Set>
BIMKERN_INLINE inline void draw_words(Set set, int64_t sample_id, PhiloxKey key, int64_t count, uint32_t* words) {
  for (int64_t first = 0; first < count; first += kLaneTokens) {
    philox_lanes(set, token_counter(sample_id, first / kWordsPerBlock), key, words + first);
  }
}

// What candidates are ordered by: all keys differ.
BIMKERN_INLINE inline uint64_t key_of(uint32_t word, int64_t place) {
  return static_cast<uint64_t>(word) << 32 | static_cast<uint64_t>(place);
}

// The place of the rank-th word, counted from 1, that equals value.
BIMKERN_INLINE inline int64_t place_of(uint32_t value, int64_t rank, const uint32_t* words) {
  int64_t place = -1;
  while (rank > 0) {
    ++place;
    rank -= words[place] == value;
  }
  return place;
}

// A key that exactly kept of the count words do not exceed; kept is at least 1.
BIMKERN_INLINE inline uint64_t last_key(const uint32_t* words, int64_t count, int64_t kept) {
  int64_t low = -1, low_count = 0;  // words up to low: fewer than kept
  int64_t high = 0xffffffff, high_count = count;
  for (bool halve = false; high_count > kept && high - low > 1; halve = !halve) {
    // Every other guess halves the range, which bounds the guesses whatever the words are.
    const double share =
        halve ? 0.5 : static_cast<double>(kept - low_count) / static_cast<double>(high_count - low_count);
    const auto step = static_cast<int64_t>(share * static_cast<double>(high - low));
    const int64_t guess = low + std::clamp<int64_t>(step, 1, high - low - 1);
    const auto limit = static_cast<uint32_t>(guess);
    uint32_t found = 0;
    for (int64_t place = 0; place < count; ++place) {
      found += words[place] <= limit;
    }
    if (found < kept) {
      low = guess;
      low_count = found;
    } else {
      high = guess;
      high_count = found;
    }
  }
  const auto word = static_cast<uint32_t>(high);
  return key_of(word, high_count == kept ? kMaxCandidates : place_of(word, kept - low_count, words));
}

}  // namespace

void random_keep(const RandomKeep& args, const Parallel& parallel, Simd simd) {
  const bool with_parent = args.parent.ids != nullptr;
  if (with_parent) {
    check_keep("random_keep", args.parent, {args.images, 0, args.tokens, args.candidates, 0}, "parent");
  }
  if (args.kept == 0) {
    return;
  }
  const int64_t drawn = ceil_div<int64_t>(args.tokens, kLaneTokens) * kLaneTokens;
  parallel(args.images, grain_rows(drawn * static_cast<int64_t>(sizeof(uint32_t))), [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> words(drawn);
    std::vector<uint32_t> parent_words(with_parent ? args.candidates : 0);
    const uint32_t* candidates = with_parent ? parent_words.data() : words.data();
    vectorized(simd, [&](auto set) BIMKERN_INLINE {
      for (int64_t image = begin; image < end; ++image) {
        draw_words(set, args.sample_ids[image * args.sample_stride], args.key, args.tokens, words.data());
        const int64_t* parent = args.parent.ids + image * args.parent.image_stride;
        for (int64_t place = 0; with_parent && place < args.candidates; ++place) {
          parent_words[place] = words[parent[place * args.parent.token_stride]];
        }
        const uint64_t last = last_key(candidates, args.candidates, args.kept);
        int64_t* places = (with_parent ? args.within : args.keep) + image * args.kept;
        int64_t found = 0;
        for (int64_t place = 0; found < args.kept; ++place) {
          places[found] = place;
          found += key_of(candidates[place], place) <= last;
        }
        for (int64_t k = 0; with_parent && k < args.kept; ++k) {
          args.keep[image * args.kept + k] = parent[places[k] * args.parent.token_stride];
        }
      }
    });
  });
}

}  // namespace bimkern
