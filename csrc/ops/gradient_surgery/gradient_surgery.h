// Gradient surgery on task gradients: one pass gives the Gram matrix of every parameter group, the coefficients of the
// surgery follow from it alone, one pass combines the gradients.
//
// Columns (parameters' elements) are cut into segments: the parameter groups of an arena, or the parameters of a list.
#pragma once

#include "common/dtype.h"
#include "common/launch.h"

namespace xfer {

// T x P task gradients where they lie, never joined.
//
// Arena form (pointers == null): element (task, column) at base + task * row_stride + column.
// List form: pointers[segment * num_tasks + task] is the first element of that task's gradient of the segment; null
// means zeros. Columns of the list form are counted through all segments, as if they were joined.
struct TaskGradientsView {
  DType dtype;
  int64_t num_tasks;            // T
  int64_t num_columns;          // P
  int64_t num_segments;         // S
  const int64_t* offsets;       // [S + 1] first column of each segment and P; on the device for CUDA
  const void* base;             // arena form
  int64_t row_stride;           // arena form, in elements
  const void* const* pointers;  // list form: [S, T]; on the device for CUDA
};

struct TaskGramArgs {
  TaskGradientsView grads;
  int64_t num_groups;            // K
  const int64_t* group_offsets;  // [K + 1] in segments; null: every segment is a group (K = S); on the device for CUDA
  double* gram;                  // [K, T, T], symmetric
  void* workspace;               // task_gram_workspace_bytes_*(args) bytes
  int32_t* status;  // CUDA: bit 1 is set by offsets out of order or range (their groups are NaN); null: no flag
  stream_t stream;  // CUDA only
};

struct CombineGradientsArgs {
  TaskGradientsView grads;
  int64_t num_groups;            // K
  const int64_t* group_offsets;  // as above
  const double* weights;         // [K, T]
  void* out;                     // arena form: [P] contiguous, in the dtype of the gradients
  void* const* out_pointers;     // list form: [S]; null: that segment has no output; on the device for CUDA
  stream_t stream;
};

// Which gradients a task is set against, and in which order.
struct SurgeryOrder {
  const int64_t* order;      // permutations of 0 .. T-1, or null: drawn by Philox from seed_step
  int64_t group_stride;      // elements from one group's permutations to the next (0: all alike)
  int64_t row_stride;        // elements from one task's permutation to the next (0: all alike)
  const int64_t* seed_step;  // [2]: (seed, step)
};

// GradVac (Wang et al., ICLR 2021; Algorithm 2), and PCGrad (Yu et al., NeurIPS 2020) as its case target = 0.
struct GradVacCoefArgs {
  int64_t num_groups;  // K
  int64_t num_tasks;   // T
  const double* gram;  // [K, T, T]
  const double* ema;   // [K, T, T] or null (zeros, and no EMA is written)
  double beta;
  SurgeryOrder order;
  const double* target;  // [K, T, T] or null: target_value where use_target_value, else the EMA
  bool use_target_value;
  double target_value;
  double target_clip;          // targets are clipped to +- this
  double residual_eps;         // a task whose |g'| <= residual_eps * |g| is left alone from then on
  const double* task_weights;  // [T] or null: ones
  const bool* task_mask;       // [T] or null: all tasks are present
  const bool* apply_to;        // [T] or null: all tasks get surgery
  double* weights;             // [K, T]: out = sum_j weights_j g_j
  double* new_ema;             // [K, T, T] or null
  double* cosine;              // [K, T, T]: phi at the visit, NaN where there was none
  bool* moved;                 // [K, T, T]: whether the visit moved g'_i
  double* coefficients;        // [K, T, T]: g'_i = sum_j coefficients_ij g_j
  stream_t stream;
};

// The point of least norm in the convex hull of the gradients (Sener & Koltun, NeurIPS 2018, Eq. 3).
struct MgdaCoefArgs {
  int64_t num_groups;
  int64_t num_tasks;
  const double* gram;     // [K, T, T]
  const double* scale;    // [K, T] or null: gradients are divided by these first
  const bool* task_mask;  // [T] or null
  double tolerance;       // stops where the duality gap <= tolerance * max |g / scale|^2
  int64_t max_iterations;
  double* weights;  // [K, T]
  double* gap;      // [K], relative to max |g / scale|^2
  stream_t stream;
};

// GradNorm (Chen et al., ICML 2018, Eq. 1 and 2), and A-GEM (Chaudhry et al., ICLR 2019, Eq. 11).
struct GradNormStatsArgs {
  int64_t num_groups;
  int64_t num_tasks;
  const double* gram;            // [K, T, T]
  const double* losses;          // [T]
  const double* initial_losses;  // [T]
  const double* weights;         // [K, T]
  const bool* task_mask;         // [T] or null
  double alpha;
  double* grad_weights;  // [K, T]: d loss / d weights
  double* loss;          // [K]
  double* norms;         // [K, T]: weights * |g|
  stream_t stream;
};

struct AgemCoefArgs {
  int64_t num_groups;
  int64_t num_tasks;
  const double* gram;  // [K, T, T]
  int64_t reference;   // row of the episodic memory's gradient
  double* weights;     // [K, T]
  double* cosine;      // [K]: of the other tasks' sum with the reference
  stream_t stream;
};

int64_t task_gram_workspace_bytes_cpu(const TaskGramArgs& args);
int64_t task_gram_workspace_bytes_cuda(const TaskGramArgs& args);
void task_gram_cpu(const TaskGramArgs& args);
void task_gram_cuda(const TaskGramArgs& args);
void combine_gradients_cpu(const CombineGradientsArgs& args);
void combine_gradients_cuda(const CombineGradientsArgs& args);
void gradvac_coef_cpu(const GradVacCoefArgs& args);
void gradvac_coef_cuda(const GradVacCoefArgs& args);
void mgda_coef_cpu(const MgdaCoefArgs& args);
void mgda_coef_cuda(const MgdaCoefArgs& args);
void gradnorm_stats_cpu(const GradNormStatsArgs& args);
void gradnorm_stats_cuda(const GradNormStatsArgs& args);
void agem_coef_cpu(const AgemCoefArgs& args);
void agem_coef_cuda(const AgemCoefArgs& args);

}  // namespace xfer
