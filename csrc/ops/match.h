// The stages of match_loss between its matrix products, over a chunk of masked cells: their rows gathered, the norm and
// GELU after the first deconvolution, the error of the predictions with its gradient, and the way back.
//
// Letters: B images of N = rows x columns cells, n cells of the chunk, D width of a token, q rows that the first
// deconvolution makes of a cell (4, else 1), E width of such a row, P values a prediction, S width of a row of
// predictions, a multiple of 16 that holds those of a 2x2 square (of one cell where nothing is deconvolved), then
// zeros.
#pragma once

#include "core/dtype.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "ops/loss_rows.h"

namespace bimkern {

// Which cells of all B * N are meant: ascending.
struct MatchCells {
  const int64_t* ids;  // [count]
  int64_t count;
  int64_t images;
  int64_t rows;
  int64_t columns;
};

struct MatchMasked {
  DType dtype;  // float32 or float64
  int64_t images;
  int64_t cells;     // N
  const void* mask;  // [B, N]
  int64_t image_stride;
  int64_t cell_stride;
  int64_t* ids;  // [B * N]: those of cells whose mask is not zero come first, ascending; the rest is undefined
  bool every;    // take all cells for masked
};

struct MatchRows {
  DType dtype;  // of tokens and out
  MatchCells cells;
  int64_t width;
  const void* tokens;  // [B, N, D]
  int64_t image_stride;
  int64_t token_stride;
  void* out;  // [n, D]
};

// Writes all rows from the first of the chunk (of all, where begin is 0) to the first of the next one, zero where no
// cell is masked.
struct MatchRowsBwd {
  DType dtype;
  MatchCells cells;  // of all chunks
  int64_t begin;     // the chunk is ids[begin, end)
  int64_t end;
  int64_t width;
  const void* grad_rows;  // [end - begin, D]
  void* grad_tokens;      // [B, N, D] contiguous
};

struct MatchNorm {
  DType dtype;  // of x and out; the rest has the type of its arithmetic
  int64_t rows;
  int64_t width;
  double eps;
  const void* x;       // [rows, E], without the bias of the deconvolution
  const void* x_bias;  // [E]
  const void* weight;  // [E]
  const void* bias;    // [E]
  void* out;           // [rows, E] GELU of the normalized rows
  void* slope;         // [rows, E] derivative of the GELU
  void* stats;         // [rows, 2] mean and reciprocal standard deviation
};

struct MatchNormBwd {
  DType dtype;  // of x and grad
  int64_t rows;
  int64_t width;
  const void* x;       // [rows, E]
  const void* x_bias;  // [E]
  const void* weight;  // [E]
  const void* slope;   // [rows, E]
  const void* stats;   // [rows, 2]
  void* grad;          // [rows, E] of out; becomes that of x
  double* sums;        // [3, E] gradients of weight, bias and x_bias are added
  double* scratch;     // [match_blocks(rows) at least, 3, E]
};

struct MatchError {
  DType dtype;  // of pred; the rest has the type of its arithmetic
  LossKind kind;
  MatchCells cells;
  int64_t side;        // 4, 2 or 1: cells of the target a side of one
  int64_t length;      // P
  int64_t width;       // S
  const void* weight;  // [B, N]
  int64_t weight_image_stride;
  int64_t weight_cell_stride;
  const void* target;  // [B, N * side^2, P]
  int64_t target_image_stride;
  int64_t target_cell_stride;
  const void* bias;  // [S]
  void* pred;        // [n, q, S] without bias; becomes weight * error, times the sign alone for kL1
  double* sums;      // [1 + S] the sum of weight * error^2 or |error|, and the columns of what pred becomes, are added
  double* scratch;   // [match_blocks(n) at least, 1 + S]
};

// Rows of scratch: sums are made over blocks of fixed size, then over blocks, whatever the number of threads.
constexpr int64_t kMatchBlock = 32;
inline int64_t match_blocks(int64_t rows) { return ceil_div(rows, kMatchBlock); }

// CPU. The ids are checked first where they decide what is read or written; throws Error.
int64_t match_masked(const MatchMasked& args);  // how many are masked
void match_rows(const MatchRows& args, const Parallel& parallel);
void match_rows_bwd(const MatchRowsBwd& args, const Parallel& parallel);
void match_norm(const MatchNorm& args, const Parallel& parallel, Simd simd);
void match_norm_bwd(const MatchNormBwd& args, const Parallel& parallel, Simd simd);
void match_error(const MatchError& args, const Parallel& parallel, Simd simd);

}  // namespace bimkern
