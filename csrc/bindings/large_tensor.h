// Uninitialised tensors whose pages cost little to touch for the first time.
#pragma once

#include <ATen/ops/empty.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace xfer::bindings {

// On the CPU a fresh block of many megabytes comes as untouched 4 KiB pages, and faulting them in takes longer than
// the kernel that writes them. Asking for huge pages on this block alone makes 1 fault of 512; it is a hint, never an
// error.
inline at::Tensor empty_large(at::IntArrayRef sizes, const at::TensorOptions& options) {
  at::Tensor out = at::empty(sizes, options);
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
  if (out.is_cpu() && out.nbytes() >= 2 * kHugePage) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
    const uintptr_t first = (begin + kHugePage - 1) & ~(kHugePage - 1);
    const uintptr_t last = (begin + out.nbytes()) & ~(kHugePage - 1);
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return out;
}

}  // namespace xfer::bindings
