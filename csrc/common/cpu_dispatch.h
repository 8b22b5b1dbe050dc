// Chooses, once per process, which copy of the CPU kernels runs.
//
// Every <op>_cpu.cpp is compiled once per instruction set with XFER_CPU_ISA = avx512 | avx2 | portable and exports
// its entry points through XFER_CPU_ENTRY; <op>.h declares the plain name and XFER_CPU_DISPATCH defines it.
// XFER_CPU_ISA in the environment forces a level (for tests and for reports of trouble).
#pragma once

#include "common/host_device.h"

namespace xfer {

enum class CpuIsa { portable, avx2, avx512 };

// The best level that this build holds and this machine runs.
CpuIsa cpu_isa();
const char* cpu_isa_name();

}  // namespace xfer

// XFER_CPU_DISPATCH(name, Args), once in <op>_cpu.cpp: defines xfer::name(const Args&), which calls the chosen copy of
// name_isa(const Args&) that the same file defines inside XFER_ISA_NAMESPACE.
#if defined(XFER_CPU_ISA)
#define XFER_CPU_DISPATCH(name, Args)  // the portable copy of the file holds the dispatcher
#elif defined(XFER_X86_LEVELS)
#define XFER_CPU_DISPATCH(name, Args)      \
  namespace xfer {                         \
  namespace avx2 {                         \
  void name##_isa(const Args& args);       \
  }                                        \
  namespace avx512 {                       \
  void name##_isa(const Args& args);       \
  }                                        \
  inline namespace portable {              \
  void name##_isa(const Args& args);       \
  }                                        \
  void name(const Args& args) {            \
    switch (cpu_isa()) {                   \
      case CpuIsa::avx512:                 \
        return avx512::name##_isa(args);   \
      case CpuIsa::avx2:                   \
        return avx2::name##_isa(args);     \
      case CpuIsa::portable:               \
        return portable::name##_isa(args); \
    }                                      \
  }                                        \
  }
#else
#define XFER_CPU_DISPATCH(name, Args)                         \
  namespace xfer {                                            \
  inline namespace portable {                                 \
  void name##_isa(const Args& args);                          \
  }                                                           \
  void name(const Args& args) { portable::name##_isa(args); } \
  }
#endif
