// The only way a kernel is launched and gets dynamic shared memory.
//
// Under nvcc this is <<<>>>; under XFER_SIMT (tests/simt) the same .cu runs thread by thread on the CPU.
// Kernels use __syncthreads, __syncwarp, __shfl_*_sync, __ballot_sync and the atomics as in CUDA; dynamic shared
// memory comes from XFER_DYNAMIC_SMEM(T, name) alone, static arrays from __shared__.
#pragma once

#include "common/error.h"
#include "common/host_device.h"

#if defined(XFER_SIMT)
#include "simt.h"

#define XFER_DYNAMIC_SMEM(T, name) T* name = reinterpret_cast<T*>(::simt::dynamic_shared_memory())

namespace xfer {
using stream_t = void*;

template <typename Kernel, typename... Args>
void launch_kernel(const char* name, Kernel kernel, dim3 grid, dim3 block, size_t smem_bytes, stream_t stream,
                   Args... args) {
  (void)stream;
  ::simt::launch(name, grid, block, smem_bytes, [=] { kernel(args...); });
}
}  // namespace xfer

#elif defined(__CUDACC__)
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

// Aligned for the widest vector access any kernel makes.
#define XFER_DYNAMIC_SMEM(T, name)                                    \
  extern __shared__ __align__(128) unsigned char xfer_dynamic_smem[]; \
  T* name = reinterpret_cast<T*>(xfer_dynamic_smem)

namespace xfer {
using stream_t = void*;  // a cudaStream_t, opaque to callers compiled without CUDA headers

// Above 48 KiB a kernel must ask. A limit is only ever raised: another thread may be between asking and launching.
inline void allow_shared_memory(const char* name, const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> limits;
  int device = 0;
  cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& limit = limits[{kernel, device}];
  if (bytes <= limit) return;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status != cudaSuccess) {
    throw Error(std::string(name) + ": " + std::to_string(bytes) +
                " bytes of shared memory refused: " + cudaGetErrorString(status));
  }
  limit = bytes;
}

template <typename Kernel, typename... Args>
void launch_kernel(const char* name, Kernel kernel, dim3 grid, dim3 block, size_t smem_bytes, stream_t stream,
                   Args... args) {
  if (smem_bytes > 48 * 1024) allow_shared_memory(name, reinterpret_cast<const void*>(kernel), smem_bytes);
  // clang-format off: it takes this for nested templates and splits >>>
  kernel<<<grid, block, smem_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
  // clang-format on
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) {
    throw Error(std::string(name) + ": launch failed: " + cudaGetErrorString(status));
  }
}
}  // namespace xfer

#else
namespace xfer {
using stream_t = void*;
}  // namespace xfer
#endif
