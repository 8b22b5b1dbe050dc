// What Python asks about moe_mlp_mix before it calls the op.
#pragma once

#include <cstdint>
#include <string>

namespace xfer::bindings {

// Whether the fused CUDA kernels take this shape in the shared memory of that device.
bool moe_mlp_mix_supported(int device_index, const std::string& dtype, int64_t num_experts, int64_t in_dim,
                           int64_t hidden_dim, int64_t out_dim);

}  // namespace xfer::bindings
