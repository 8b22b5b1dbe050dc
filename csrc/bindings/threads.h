// The thread count that torch was told, in threads that OpenMP has not heard of it in.
#pragma once

#include <ATen/Parallel.h>

namespace xfer::bindings {

// OpenMP keeps its thread count per thread; torch forwards torch.set_num_threads into a new one when it is asked.
inline void adopt_thread_count() { (void)at::get_num_threads(); }

}  // namespace xfer::bindings
