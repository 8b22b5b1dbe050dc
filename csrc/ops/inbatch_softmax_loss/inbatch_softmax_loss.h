// inbatch_softmax_loss: what happens to a block of similarities between its matrix products.
//
// The bindings walk over row blocks of sim = U V^T (and over tiles of columns, where a whole row does not fit the
// workspace), call these passes on each, and multiply the result with V and U. Everything here works in place on the
// block: O(B + N) memory beside it.
//
//   z_ij = scale (sim_ij - margin [j = y_i])            the logit; a masked column has none
//   t_i  = sum over j != y_i of exp(z_ij - m_i)         m_i: the row's largest logit
//   loss_i = log(1 + t_i exp(m_i - z_iy))
//   d_ij = coef_i p_ij (+ col_coef_j q_ij),  d_iy = -coef_i sum over j != y of p_ij (+ pos_extra_i)
//
// The positive's gradient is minus the mass of the others, never p - 1: on confident rows that would cancel.
#pragma once

#include "common/dtype.h"
#include "common/launch.h"

namespace xfer {

// An id of a column that no row sees, and ids that match nothing.
constexpr int64_t kInbatchAbsent = INT64_MIN;

// What inbatch_softmax_rows does, as a sum of flags. With a whole row in the block it is all of them at once;
// with tiles of columns, statistics of every tile come before gradients of any.
constexpr int kInbatchStats = 1;   // update row_max and row_rest from the tile
constexpr int kInbatchFinish = 2;  // the last tile of statistics: write lse, pos_logit, loss
constexpr int kInbatchGrads = 4;   // replace the similarities by their gradients
constexpr int kInbatchRanks = 8;   // update rank and argmax; needs pos_sim, so after the statistics of all tiles
// The tile is the first one of its rows: statistics start anew, and hard negatives are taken with it.
constexpr int kInbatchFirst = 16;

// The compute type C is fp32, or fp64 where dtype is f64. Arrays of one entry a row start at the block's first row.
struct InbatchRowsArgs {
  DType dtype;           // of the gradients that replace the similarities (f32 and f64: that of the similarities)
  int passes;            // of the flags above
  int64_t num_rows;      // of this block
  int64_t num_columns;   // of this tile
  int64_t first_column;  // of this tile among all columns
  int64_t num_all;       // columns in all; hard negatives are numbered from here on
  void* sim;             // [num_rows, num_columns] C, contiguous. With kInbatchGrads the gradients, as dtype, start
                         // at every row's first byte, a row of dtype being sizeof(C) / sizeof(dtype) times as long
  int64_t num_hard;      // own hard negatives of a row, H
  void* hard_sim;        // [num_rows, H] C; with kInbatchGrads replaced by their gradients, which stay C
  const void* scale;     // [] C
  double margin;
  const int64_t* targets;   // [num_rows] y_i, or null: y_i = first_target + i
  int64_t first_target;     // of the block's first row, where targets is null
  const int64_t* row_ids;   // [num_rows] or null; a negative one matches nothing
  const int64_t* col_ids;   // [num_columns], of this tile, or null; kInbatchAbsent: no row sees the column
  const int64_t* hard_ids;  // [num_rows, H] or null; a negative one is padding
  const void* coef;         // [num_rows] C, d loss / d loss_i, or null: gradients are not asked for
  bool scaled;              // whether the gradients carry the factor scale (else the caller applies it)
  // The columns' own softmax (symmetric = true), of this tile; null without it.
  const void* col_lse;    // [num_columns] C
  const void* col_coef;   // [num_columns] C
  const void* pos_extra;  // [num_rows] C, the column's part of the positive's gradient

  void* row_max;     // [num_rows] C, m_i
  void* row_rest;    // [num_rows] C, t_i
  void* pos_sim;     // [num_rows] C, similarity of the positive, margin not taken off
  void* lse;         // [num_rows] C, written by kInbatchFinish
  void* pos_logit;   // [num_rows] C, by kInbatchFinish
  void* loss;        // [num_rows] C, by kInbatchFinish
  void* grad_scale;  // [num_rows] C or null: sum over j of d_ij (sim_ij - margin [j = y_i]), by kInbatchGrads
  int64_t* rank;     // [num_rows], by kInbatchRanks: 1 + competitors not below the positive
  int64_t* argmax;   // [num_rows], by kInbatchRanks
  void* best_sim;    // [num_rows] C, the similarity at argmax, by kInbatchRanks
  int32_t* status;   // CUDA: status_bit is set by a target outside [0, num_all); null: no flag
  int32_t status_bit;
  stream_t stream;
};

// The columns' softmax over rows. Blocks of rows are added one after another into max, rest, positive.
struct InbatchColumnsArgs {
  DType dtype;  // f32 or f64: that of the similarities
  int64_t num_rows, num_columns, first_column, num_all;
  const void* sim;  // [num_rows, num_columns] C, contiguous
  const void* scale;
  double margin;
  const int64_t* targets;
  int64_t first_target;
  const int64_t* row_ids;
  const int64_t* col_ids;
  const void* coef;  // [num_rows] C
  // Of this tile's columns, updated; the caller starts them at -inf, 0, 0, 0, 0.
  void* max;       // [num_columns] C: the largest logit of the column
  void* rest;      // [num_columns] C: sum of exp(z - max) over rows that have another positive
  void* positive;  // [num_columns] C: the same over rows whose positive this is
  void* count;     // [num_columns] C: number of those rows
  void* coef_sum;  // [num_columns] C: sum of their coef
  stream_t stream;
};

// sims [num_rows, H] C: sims_ih = <u_i, hard_ih>.
struct InbatchHardSimsArgs {
  DType dtype;
  int64_t num_rows, num_hard, dim;
  const void* u;     // [num_rows, dim] contiguous
  const void* hard;  // [num_rows, H, dim] contiguous
  void* sims;        // [num_rows, H] C
  stream_t stream;
};

// From the gradients d [num_rows, H] C of those similarities:
// grad_u_i += sum_h d_ih hard_ih (C), grad_hard_ih = factor d_ih u_i (dtype).
struct InbatchHardGradsArgs {
  DType dtype;
  int64_t num_rows, num_hard, dim;
  const void* d;       // [num_rows, H] C
  const void* u;       // [num_rows, dim] dtype
  const void* hard;    // [num_rows, H, dim] dtype
  const void* factor;  // [] C or null: 1
  void* grad_u;        // [num_rows, dim] C, added to; or null
  void* grad_hard;     // [num_rows, H, dim] dtype; or null
  stream_t stream;
};

void inbatch_softmax_rows_cpu(const InbatchRowsArgs& args);
void inbatch_softmax_rows_cuda(const InbatchRowsArgs& args);
void inbatch_softmax_columns_cpu(const InbatchColumnsArgs& args);
void inbatch_softmax_columns_cuda(const InbatchColumnsArgs& args);
void inbatch_hard_sims_cpu(const InbatchHardSimsArgs& args);
void inbatch_hard_sims_cuda(const InbatchHardSimsArgs& args);
void inbatch_hard_grads_cpu(const InbatchHardGradsArgs& args);
void inbatch_hard_grads_cuda(const InbatchHardGradsArgs& args);

}  // namespace xfer
