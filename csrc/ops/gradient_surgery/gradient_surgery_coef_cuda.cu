// CUDA kernels of the coefficients: gradient surgery on Gram matrices alone. A warp takes a row (gradvac_coef) or a
// group (mgda_coef): each is a chain of steps, and a step's sums over tasks are the only parallel work in it.
#include "common/reduce.cuh"
#include "ops/gradient_surgery/gradient_surgery.h"
#include "ops/gradient_surgery/gradient_surgery_math.h"

namespace xfer {
namespace {

constexpr int kMaxRowWarps = 28;            // of a block of gradvac_coef: 72 registers a thread
constexpr int kGroupThreads = 32;           // groups a block of the methods that give each one thread
constexpr int64_t kSmemBytes = 160 * 1024;  // what every device since sm_80 has

// What the formulas ask of the threads that share a row or a group. The butterfly adds the same pairs in every lane, so
// all have the same bits.
struct WarpTeam {
  __device__ __forceinline__ int64_t lane() const { return threadIdx.x % 32; }
  __device__ __forceinline__ int64_t size() const { return 32; }
  __device__ __forceinline__ void sync() const { __syncwarp(); }
  __device__ __forceinline__ double sum(double value) const {
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
    return value;
  }
  // Index -1 comes with infinity, which no other index does.
  __device__ __forceinline__ int64_t best(double value, int64_t index) const {
    for (int offset = 16; offset > 0; offset /= 2) {
      const double other = __shfl_xor_sync(kFullWarp, value, offset);
      const int64_t other_index = __shfl_xor_sync(kFullWarp, index, offset);
      if (other < value || (other == value && other_index < index)) {
        value = other;
        index = other_index;
      }
    }
    return index;
  }
};

// A warp's scratch in shared memory.
struct RowScratch {
  double* dots;          // [num_tasks]
  double* coefficients;  // [num_tasks]
  int32_t* order;        // [num_tasks]
};
constexpr int64_t kRowBytesPerTask = 2 * sizeof(double) + sizeof(int32_t);

// The order of row `row` of group `group` into scratch.order; false where it is no permutation.
__device__ __forceinline__ bool read_order(const GradVacCoefArgs& args, int64_t group, int64_t row,
                                           const RowScratch& scratch) {
  const WarpTeam team;
  const int64_t num_tasks = args.num_tasks;
  if (args.order.order == nullptr) {
    const PhiloxState seed_step = {args.order.seed_step[0], args.order.seed_step[1]};
    if (team.lane() == 0) surgery_permutation(seed_step, group * num_tasks + row, num_tasks, scratch.order);
    team.sync();
    return true;
  }
  const int64_t* order = args.order.order + group * args.order.group_stride + row * args.order.row_stride;
  for (int64_t j = team.lane(); j < num_tasks; j += team.size()) scratch.dots[j] = 0.0;
  team.sync();
  bool good = true;
  for (int64_t p = team.lane(); p < num_tasks; p += team.size()) {
    const int64_t j = order[p];
    const bool inside = j >= 0 && j < num_tasks;
    scratch.order[p] = static_cast<int32_t>(inside ? j : 0);
    if (inside) scratch.dots[j] = 1.0;  // that it was seen
    good = good && inside;
  }
  team.sync();
  for (int64_t j = team.lane(); j < num_tasks; j += team.size()) good = good && scratch.dots[j] != 0.0;
  return __all_sync(kFullWarp, good);
}

// A block takes a group. Its warps share out the rows; when all are done, its threads add up the columns.
__global__ void __launch_bounds__(kMaxRowWarps * 32) gradvac_coef_kernel(const __grid_constant__ GradVacCoefArgs args) {
  XFER_DYNAMIC_SMEM(double, smem);  // [warps, 2, num_tasks] and int32 [warps, num_tasks]
  const WarpTeam team;
  const int64_t T = args.num_tasks, group = blockIdx.x;
  const int64_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const RowScratch scratch = {smem + warp * 2 * T, smem + (warp * 2 + 1) * T,
                              reinterpret_cast<int32_t*>(smem + warps * 2 * T) + warp * T};
  for (int64_t i = warp; i < T; i += warps) {
    const int64_t at = (group * T + i) * T;
    const bool good = read_order(args, group, i, scratch);
    GradVacRow row = {};
    row.gram = args.gram + group * T * T;
    row.num_tasks = T;
    row.task = i;
    row.order32 = scratch.order;
    row.ema = args.ema != nullptr ? args.ema + at : nullptr;
    row.target = args.target != nullptr ? args.target + at : nullptr;
    row.use_target_value = args.use_target_value;
    row.target_value = args.target_value;
    row.target_clip = args.target_clip;
    row.beta = args.beta;
    row.residual_eps = args.residual_eps;
    row.task_mask = args.task_mask;
    row.apply_to = args.apply_to;
    row.dots = scratch.dots;
    row.coefficients = scratch.coefficients;
    row.new_ema = args.new_ema != nullptr ? args.new_ema + at : nullptr;
    row.cosine = args.cosine + at;
    row.moved = args.moved + at;
    // An order that is no permutation visits nothing, and its row is NaN: it never trains silently.
    if (!good) row.residual_eps = INFINITY;
    gradvac_row(team, row);
    team.sync();
    for (int64_t j = team.lane(); j < T; j += team.size()) {
      args.coefficients[at + j] = good ? scratch.coefficients[j] : NAN;
    }
  }
  __syncthreads();
  for (int64_t j = threadIdx.x; j < T; j += blockDim.x) {
    args.weights[group * T + j] = surgery_column_sum(args.coefficients + group * T * T, T, j, args.task_weights);
  }
}

// A warp takes a group.
__global__ void __launch_bounds__(32) mgda_coef_kernel(const __grid_constant__ MgdaCoefArgs args) {
  XFER_DYNAMIC_SMEM(double, smem);  // [3, num_tasks]
  const WarpTeam team;
  const int64_t T = args.num_tasks, k = blockIdx.x;
  MgdaGroup group = {};
  group.gram = args.gram + k * T * T;
  group.scale = args.scale != nullptr ? args.scale + k * T : nullptr;
  group.num_tasks = T;
  group.task_mask = args.task_mask;
  group.tolerance = args.tolerance;
  group.max_iterations = args.max_iterations;
  group.slope = smem;
  group.inverse = smem + T;
  group.weights = smem + 2 * T;
  const double gap = mgda_group(team, group);
  for (int64_t j = team.lane(); j < T; j += team.size()) args.weights[k * T + j] = group.weights[j];
  if (team.lane() == 0) args.gap[k] = gap;
}

// A thread takes a group: T terms.
__global__ void __launch_bounds__(kGroupThreads) gradnorm_stats_kernel(const __grid_constant__ GradNormStatsArgs args) {
  const int64_t T = args.num_tasks, k = static_cast<int64_t>(blockIdx.x) * kGroupThreads + threadIdx.x;
  if (k >= args.num_groups) return;
  GradNormGroup group = {};
  group.gram = args.gram + k * T * T;
  group.losses = args.losses;
  group.initial_losses = args.initial_losses;
  group.weights = args.weights + k * T;
  group.task_mask = args.task_mask;
  group.num_tasks = T;
  group.alpha = args.alpha;
  group.grad_weights = args.grad_weights + k * T;
  group.norms = args.norms + k * T;
  args.loss[k] = gradnorm_group(group);
}

__global__ void __launch_bounds__(kGroupThreads) agem_coef_kernel(const __grid_constant__ AgemCoefArgs args) {
  const int64_t T = args.num_tasks, k = static_cast<int64_t>(blockIdx.x) * kGroupThreads + threadIdx.x;
  if (k >= args.num_groups) return;
  args.cosine[k] = agem_group(args.gram + k * T * T, T, args.reference, args.weights + k * T);
}

// Refuses more tasks than the scratch of one warp holds.
void check_tasks(const char* op, int64_t num_tasks, int64_t bytes_per_task) {
  if (num_tasks * bytes_per_task <= kSmemBytes) return;
  throw Error(std::string(op) + ": num_tasks must be at most " + std::to_string(kSmemBytes / bytes_per_task) +
              " on CUDA, got " + std::to_string(num_tasks));
}

dim3 thread_per_group(int64_t num_groups) {
  return dim3(static_cast<unsigned>((num_groups + kGroupThreads - 1) / kGroupThreads));
}

}  // namespace

void gradvac_coef_cuda(const GradVacCoefArgs& args) {
  if (args.num_groups == 0 || args.num_tasks == 0) return;
  const int64_t bytes = args.num_tasks * kRowBytesPerTask;
  check_tasks("gradvac_coef", args.num_tasks, kRowBytesPerTask);
  int64_t warps = args.num_tasks < kMaxRowWarps ? args.num_tasks : kMaxRowWarps;
  if (warps * bytes > kSmemBytes) warps = kSmemBytes / bytes;
  launch_kernel("gradvac_coef_kernel", gradvac_coef_kernel, dim3(static_cast<unsigned>(args.num_groups)),
                dim3(static_cast<unsigned>(warps * 32)), static_cast<size_t>(warps * bytes), args.stream, args);
}

void mgda_coef_cuda(const MgdaCoefArgs& args) {
  if (args.num_groups == 0 || args.num_tasks == 0) return;
  const int64_t bytes_per_task = 3 * sizeof(double);
  check_tasks("mgda_coef", args.num_tasks, bytes_per_task);
  launch_kernel("mgda_coef_kernel", mgda_coef_kernel, dim3(static_cast<unsigned>(args.num_groups)), dim3(32),
                static_cast<size_t>(args.num_tasks * bytes_per_task), args.stream, args);
}

void gradnorm_stats_cuda(const GradNormStatsArgs& args) {
  if (args.num_groups == 0) return;
  launch_kernel("gradnorm_stats_kernel", gradnorm_stats_kernel, thread_per_group(args.num_groups), dim3(kGroupThreads),
                0, args.stream, args);
}

void agem_coef_cuda(const AgemCoefArgs& args) {
  if (args.num_groups == 0 || args.num_tasks == 0) return;
  launch_kernel("agem_coef_kernel", agem_coef_kernel, thread_per_group(args.num_groups), dim3(kGroupThreads), 0,
                args.stream, args);
}

}  // namespace xfer
