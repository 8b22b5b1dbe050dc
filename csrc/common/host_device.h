// What lets one formula compile for the host, for CUDA and for the thread-by-thread emulation of tests/simt.
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(XFER_SIMT)
#define XFER_GPU_CODE 1
#endif

#if defined(__CUDACC__)
#define XFER_HD __host__ __device__ __forceinline__
#else
#define XFER_HD inline __attribute__((always_inline))
#endif

// CPU kernels are compiled once per instruction set (see common/cpu_dispatch.h). Each copy lives in a namespace
// of its own, so the linker can never give the code for a newer machine to an older one.
#if defined(XFER_CPU_ISA)
#define XFER_ISA_NAMESPACE XFER_CPU_ISA
#else
#define XFER_ISA_NAMESPACE portable
#endif
