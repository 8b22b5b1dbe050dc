// The one parallel loop of the CPU kernels.
//
// Work is cut into chunks whose number and bounds depend on the problem alone, never on the number of threads, and
// reductions over chunks run in chunk order: the same bits on 1 and on n threads.
// OpenMP is compiled in but libgomp is not linked: the symbols resolve to torch's copy, so there is one thread pool
// and torch.set_num_threads holds here too. XFER_STD_THREAD routes the loop to std::thread for ThreadSanitizer,
// which cannot see into libgomp.
#pragma once

#include <cstdint>

#if defined(XFER_STD_THREAD)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

#include "common/host_device.h"

namespace xfer {
inline namespace XFER_ISA_NAMESPACE {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int max_workers() {
#if defined(XFER_STD_THREAD)
  return static_cast<int>(std::thread::hardware_concurrency());
#elif defined(_OPENMP)
  return omp_in_parallel() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls f(chunk, worker) for chunk = 0 .. num_chunks - 1 in any order; worker < max_workers() names a scratch slot.
// f must not throw. With more than one thread allowed it always runs inside a parallel region, even for one chunk:
// a BLAS called from f then stays serial, so its bits do not change with the thread count either.
template <typename F>
void parallel_chunks(int64_t num_chunks, int workers, const F& f) {
  if (num_chunks <= 0) return;
  if (workers <= 1) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) f(chunk, 0);
    return;
  }
#if defined(XFER_STD_THREAD)
  std::vector<std::thread> threads;
  for (int worker = 0; worker < workers; ++worker) {
    threads.emplace_back([&f, worker, workers, num_chunks] {
      for (int64_t chunk = worker; chunk < num_chunks; chunk += workers) f(chunk, worker);
    });
  }
  for (auto& thread : threads) thread.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(workers)
  {
    const int worker = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) f(chunk, worker);
  }
#endif
}

}  // namespace XFER_ISA_NAMESPACE
}  // namespace xfer
