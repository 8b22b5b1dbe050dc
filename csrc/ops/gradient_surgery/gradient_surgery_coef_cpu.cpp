// CPU kernels of the coefficients: groups are independent of each other and spread over the threads.
#include <cstdlib>

#include "common/cpu_dispatch.h"
#include "common/parallel.h"
#include "ops/gradient_surgery/gradient_surgery.h"
#include "ops/gradient_surgery/gradient_surgery_math.h"

XFER_CPU_DISPATCH(gradvac_coef_cpu, GradVacCoefArgs)
XFER_CPU_DISPATCH(mgda_coef_cpu, MgdaCoefArgs)
XFER_CPU_DISPATCH(gradnorm_stats_cpu, GradNormStatsArgs)
XFER_CPU_DISPATCH(agem_coef_cpu, AgemCoefArgs)

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {
namespace {

constexpr int64_t kStackTasks = 128;  // scratch on the stack; more tasks go to the heap
constexpr int64_t kParallelProducts =
    1 << 16;  // below it, a few tens of microseconds, threads cost more than they save

// Two rows of T numbers.
class TaskScratch {
 public:
  explicit TaskScratch(int64_t num_tasks)
      : heap_(num_tasks > kStackTasks ? static_cast<double*>(std::malloc(2 * num_tasks * sizeof(double))) : nullptr),
        first_(heap_ != nullptr ? heap_ : stack_),
        second_(first_ + (num_tasks > kStackTasks ? num_tasks : kStackTasks)) {}
  ~TaskScratch() { std::free(heap_); }
  TaskScratch(const TaskScratch&) = delete;
  TaskScratch& operator=(const TaskScratch&) = delete;

  double* first() { return first_; }
  double* second() { return second_; }

 private:
  double stack_[2 * kStackTasks];
  double* heap_;
  double* first_;
  double* second_;
};

int workers_for(int64_t num_groups, int64_t num_tasks) {
  return num_groups > 1 && num_groups * num_tasks * num_tasks * num_tasks > kParallelProducts ? max_workers() : 1;
}

void gradvac_group(const GradVacCoefArgs& args, int64_t k) {
  const int64_t T = args.num_tasks;
  const int64_t square = k * T * T;
  TaskScratch scratch(T);
  for (int64_t i = 0; i < T; ++i) {
    const int64_t at = square + i * T;
    GradVacRow row{};
    row.gram = args.gram + square;
    row.num_tasks = T;
    row.task = i;
    if (args.order.order != nullptr) {
      row.order = args.order.order + k * args.order.group_stride + i * args.order.row_stride;
    } else {
      int32_t* order = reinterpret_cast<int32_t*>(scratch.second());
      surgery_permutation({args.order.seed_step[0], args.order.seed_step[1]}, k * T + i, T, order);
      row.order32 = order;
    }
    row.ema = args.ema != nullptr ? args.ema + at : nullptr;
    row.target = args.target != nullptr ? args.target + at : nullptr;
    row.use_target_value = args.use_target_value;
    row.target_value = args.target_value;
    row.target_clip = args.target_clip;
    row.beta = args.beta;
    row.residual_eps = args.residual_eps;
    row.task_mask = args.task_mask;
    row.apply_to = args.apply_to;
    row.dots = scratch.first();
    row.coefficients = args.coefficients + at;
    row.new_ema = args.new_ema != nullptr ? args.new_ema + at : nullptr;
    row.cosine = args.cosine + at;
    row.moved = args.moved + at;
    gradvac_row(OneThread{}, row);
  }
  for (int64_t j = 0; j < T; ++j) {
    args.weights[k * T + j] = surgery_column_sum(args.coefficients + square, T, j, args.task_weights);
  }
}

void mgda_group_at(const MgdaCoefArgs& args, int64_t k) {
  const int64_t T = args.num_tasks;
  TaskScratch scratch(T);
  MgdaGroup group{};
  group.gram = args.gram + k * T * T;
  group.scale = args.scale != nullptr ? args.scale + k * T : nullptr;
  group.num_tasks = T;
  group.task_mask = args.task_mask;
  group.tolerance = args.tolerance;
  group.max_iterations = args.max_iterations;
  group.slope = scratch.first();
  group.inverse = scratch.second();
  group.weights = args.weights + k * T;
  args.gap[k] = mgda_group(OneThread{}, group);
}

}  // namespace

void gradvac_coef_cpu_isa(const GradVacCoefArgs& args) {
  parallel_chunks(args.num_groups, workers_for(args.num_groups, args.num_tasks),
                  [&](int64_t k, int) { gradvac_group(args, k); });
}

void mgda_coef_cpu_isa(const MgdaCoefArgs& args) {
  parallel_chunks(args.num_groups, workers_for(args.num_groups, args.num_tasks),
                  [&](int64_t k, int) { mgda_group_at(args, k); });
}

void gradnorm_stats_cpu_isa(const GradNormStatsArgs& args) {
  const int64_t T = args.num_tasks;
  for (int64_t k = 0; k < args.num_groups; ++k) {
    args.loss[k] = gradnorm_group({args.gram + k * T * T, args.losses, args.initial_losses, args.weights + k * T,
                                   args.task_mask, T, args.alpha, args.grad_weights + k * T, args.norms + k * T});
  }
}

void agem_coef_cpu_isa(const AgemCoefArgs& args) {
  const int64_t T = args.num_tasks;
  for (int64_t k = 0; k < args.num_groups; ++k) {
    args.cosine[k] = agem_group(args.gram + k * T * T, T, args.reference, args.weights + k * T);
  }
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
