// The Python module xfercore._C. Importing it registers the ops (each beside its code); it exports build facts alone.
#include <pybind11/pybind11.h>

#include "bindings/moe_mlp_mix.h"
#include "common/cpu_dispatch.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of xfercore; the ops are under torch.ops.xfercore.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["torch"] = XFER_TORCH_VERSION;
#if defined(XFER_WITH_CUDA)
        info["cuda"] = XFER_CUDA_VERSION;
        info["cuda_archs"] = XFER_CUDA_ARCHS;
#else
        info["cuda"] = py::none();
        info["cuda_archs"] = py::none();
#endif
        info["compiler"] = __VERSION__;
        info["cpu_isa"] = xfer::cpu_isa_name();
        return info;
      },
      "What the module was built with, and the CPU instruction set its kernels use here.");
  m.def("moe_mlp_mix_supported", &xfer::bindings::moe_mlp_mix_supported,
        "Whether the fused CUDA kernels of moe_mlp_mix take this shape on this device.", py::arg("device_index"),
        py::arg("dtype"), py::arg("num_experts"), py::arg("in_dim"), py::arg("hidden_dim"), py::arg("out_dim"));
}
