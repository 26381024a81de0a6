// match_predict and match_loss at scales 1 and 1/2, in float32: one linear layer with few outputs, whose cells are
// tokens or the means of their squares. Cells pass in tiles that stay in a core's cache, so that tokens are read once
// on the way there, and their gradient is written once on the way back.
//
// Letters: B images of N = rows x columns tokens, D width of a token, M = N / side^2 cells, P values a prediction.
// Strides in elements; rows are contiguous.
#pragma once

#include <algorithm>

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/loss_rows.h"

namespace bimkern {

struct MatchGrid {
  int64_t images;
  int64_t rows;     // a multiple of side
  int64_t columns;  // a multiple of side
  int64_t side;     // tokens a side of a cell: 1 or 2
  int64_t width;    // D
  int64_t length;   // P

  int64_t tokens() const { return rows * columns; }
  int64_t cells() const { return rows / side * (columns / side); }
  int64_t all_cells() const { return images * cells(); }
};

// What both ways read.
struct MatchLayer {
  MatchGrid grid;
  DType dtype;         // of tokens, not float64
  const void* tokens;  // [B, N, D]
  int64_t image_stride;
  int64_t token_stride;
  const float* weight;  // [P, D] contiguous
  const float* bias;    // [P]
};

struct MatchLinear {
  MatchLayer layer;
  float* means;  // [B, M, D], or null; not null where side is 2
  float* out;    // [B, M, P]
};

// The gradients are those of loss, unless its denominator is zero: then all is zero.
struct MatchLinearLoss {
  MatchLayer layer;
  LossKind kind;
  const float* target;  // [B, M, P]
  int64_t target_image_stride;
  int64_t target_cell_stride;
  const float* mask;  // [B, N]; a cell counts with the mean of its tokens; what counts nothing is not read
  int64_t mask_image_stride;
  int64_t mask_token_stride;
  const float* denominator;  // scalar
  float* loss;               // scalar: sum(mask * mean_P error) / denominator
  float* grad_out;           // [B, M, P] of predictions, or null without gradients; so are the two below
  float* grad_weight;        // [P, D]
  float* grad_bias;          // [P]
  float* scratch;            // [match_slabs(B * M), P, D] with gradients
};

struct MatchLinearBwd {
  MatchGrid grid;
  const float* grad_out;  // [B, M, P]; what is zero in a whole row costs nothing
  const float* weight;    // [P, D]
  const float* x;         // [B, M, D] what weight multiplied; may be null where grad_weight is
  DType dtype;            // of grad_tokens, not float64
  void* grad_tokens;      // [B, N, D], or null where not needed; so are the two below
  float* grad_weight;     // [P, D]
  float* grad_bias;       // [P]
};

// Cells go in slabs, each with a sum of its own: the same bits from any number of threads.
constexpr int64_t kMatchTile = 120;  // cells
constexpr int64_t kMatchSlabs = 32;  // at most
inline int64_t match_slabs(int64_t cells) { return std::min(ceil_div(cells, kMatchTile), kMatchSlabs); }

// CPU.
void match_linear(const MatchLinear& args, const Parallel& parallel, Simd simd);
void match_linear_loss(const MatchLinearLoss& args, const Parallel& parallel, Simd simd);
void match_linear_bwd(const MatchLinearBwd& args, const Parallel& parallel, Simd simd);

}  // namespace bimkern
