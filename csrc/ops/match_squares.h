// Squares of 2x2 tokens, of which one cell is made, to be called inside of vectorized().
#pragma once

#include <cstring>

#include "core/rows.h"

namespace bimkern {

// The first token of a cell's square, among those of an image.
inline int64_t corner_of(int64_t cell, int64_t columns) {
  const int64_t half = columns / 2;
  return cell / half * 2 * columns + cell % half * 2;
}

template <typename A>
BIMKERN_INLINE inline void quarter_row(int64_t width, A* __restrict row) {
  for (int64_t d = 0; d < width; ++d) {
    row[d] *= A(0.25);
  }
}

// out = the mean of four rows; a row of tokens is `down` below another.
template <typename Set, typename T, typename A>
BIMKERN_INLINE inline void mean_of_square(Set set, const T* first, int64_t right, int64_t down, int64_t width, A* out) {
  const T* rows[] = {first, first + right, first + down, first + down + right};
  cover_row(
      width,
      [&](int64_t d) BIMKERN_INLINE {
        A wide[4][kPacket], mean[kPacket];
        const A* x[4];
        for (int i = 0; i < 4; ++i) {
          x[i] = as_packet(set, rows[i] + d, wide[i]);
        }
        for (int i = 0; i < kPacket; ++i) {
          mean[i] = (x[0][i] + x[1][i] + x[2][i] + x[3][i]) * A(0.25);
        }
        std::memcpy(out + d, mean, sizeof(mean));
      },
      [&](int64_t d) BIMKERN_INLINE {
        A sum = 0;
        for (const T* row : rows) {
          sum += load_as<A>(row[d]);
        }
        out[d] = sum * A(0.25);
      });
}

}  // namespace bimkern
