// The run-time choice behind cpu_dispatch.h.
#include "common/cpu_dispatch.h"

#include <cstdlib>
#include <cstring>

namespace xfer {
namespace {

CpuIsa detect() {
  CpuIsa best = CpuIsa::portable;
#if defined(XFER_X86_LEVELS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    best = CpuIsa::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      best = CpuIsa::avx512;
    }
  }
  // A level can be forced downwards only: code for a newer machine would crash this one.
  if (const char* forced = std::getenv("XFER_CPU_ISA")) {
    if (std::strcmp(forced, "portable") == 0) return CpuIsa::portable;
    if (std::strcmp(forced, "avx2") == 0 && best == CpuIsa::avx512) return CpuIsa::avx2;
  }
#endif
  return best;
}

}  // namespace

CpuIsa cpu_isa() {
  static const CpuIsa chosen = detect();
  return chosen;
}

const char* cpu_isa_name() {
  switch (cpu_isa()) {
    case CpuIsa::avx512:
      return "avx512";
    case CpuIsa::avx2:
      return "avx2";
    case CpuIsa::portable:
      break;
  }
  return "portable";
}

}  // namespace xfer
