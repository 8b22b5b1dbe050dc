// torch binding of moe_mlp_mix.
#include "ops/moe_mlp_mix/moe_mlp_mix.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "bindings/autocast.h"
#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/host_gemm.h"
#include "bindings/large_tensor.h"
#include "bindings/moe_mlp_mix.h"

namespace xfer::bindings {
namespace {

const ArgChecks check("moe_mlp_mix");

constexpr std::array<std::pair<const char*, Act>, 3> kAct1{
    {{"none", Act::none}, {"relu", Act::relu}, {"tanh", Act::tanh}}};
constexpr std::array<std::pair<const char*, Act>, 5> kAct2{{{"none", Act::none},
                                                            {"relu", Act::relu},
                                                            {"tanh", Act::tanh},
                                                            {"softmax", Act::softmax},
                                                            {"log_softmax", Act::log_softmax}}};
constexpr std::array<std::pair<const char*, Mix>, 2> kMix{{{"sum", Mix::sum}, {"logsumexp", Mix::logsumexp}}};

// Holds the contiguous tensors alive while their pointers are in args.
struct Checked {
  at::Tensor x, gate_weight, gate_bias, w1, b1, w2, b2;
  std::optional<at::Tensor> seed_offset;
  MoeMlpMixForwardArgs args{};

  at::TensorOptions options() const { return x.options(); }
};

Checked check_arguments(const at::Tensor& x, const at::Tensor& gate_weight, const at::Tensor& gate_bias,
                        const at::Tensor& w1, const at::Tensor& b1, const at::Tensor& w2, const at::Tensor& b2,
                        const std::optional<at::Tensor>& seed_offset, double dropout_p, c10::string_view act1,
                        c10::string_view act2, c10::string_view mix) {
  Checked c;
  c.args.dtype = check.dtype(x, "x");
  check.rank(x, "x", 2, "[num_tokens, in_dim]");
  check.rank(w1, "w1", 3, "[num_experts, hidden_dim, in_dim]");
  check.rank(w2, "w2", 3, "[num_experts, out_dim, hidden_dim]");
  const int64_t N = x.size(0), d = x.size(1), K = w1.size(0), h = w1.size(1), D = w2.size(1);
  TORCH_CHECK_VALUE(K > 0, "moe_mlp_mix(): w1 must hold at least one expert, got shape ", w1.sizes());
  check.sizes(w1, "w1", {K, h, d}, "[num_experts, hidden_dim, in_dim]");
  check.sizes(w2, "w2", {K, D, h}, "[num_experts, out_dim, hidden_dim]");
  check.sizes(gate_weight, "gate_weight", {K, d}, "[num_experts, in_dim]");
  check.sizes(gate_bias, "gate_bias", {K}, "[num_experts]");
  check.sizes(b1, "b1", {K, h}, "[num_experts, hidden_dim]");
  check.sizes(b2, "b2", {K, D}, "[num_experts, out_dim]");
  check.like(gate_weight, "gate_weight", x, "x");
  check.like(gate_bias, "gate_bias", x, "x");
  check.like(w1, "w1", x, "x");
  check.like(b1, "b1", x, "x");
  check.like(w2, "w2", x, "x");
  check.like(b2, "b2", x, "x");
  TORCH_CHECK_VALUE(dropout_p >= 0.0 && dropout_p < 1.0, "moe_mlp_mix(): dropout_p must be in [0, 1), got ", dropout_p);
  if (dropout_p > 0.0) {
    TORCH_CHECK_VALUE(seed_offset.has_value(),
                      "moe_mlp_mix(): seed_offset must be an int64 tensor [2] where dropout_p > 0, got None");
    check.sizes(*seed_offset, "seed_offset", {2}, "[2]");
    check.int64(*seed_offset, "seed_offset");
    check.device(*seed_offset, "seed_offset", x, "x");
    c.seed_offset = seed_offset->contiguous();
    c.args.seed_offset = c.seed_offset->const_data_ptr<int64_t>();
  }
  c.args.act1 = check.choice({act1.data(), act1.size()}, "act1", kAct1);
  c.args.act2 = check.choice({act2.data(), act2.size()}, "act2", kAct2);
  c.args.mix = check.choice({mix.data(), mix.size()}, "mix", kMix);
  TORCH_CHECK_VALUE(
      c.args.mix == Mix::sum || c.args.act2 == Act::log_softmax || c.args.act2 == Act::none,
      "moe_mlp_mix(): mix='logsumexp' takes log-probabilities, so act2 must be log_softmax or none, got '", act2, "'");
  c.x = x.contiguous();
  c.gate_weight = gate_weight.contiguous();
  c.gate_bias = gate_bias.contiguous();
  c.w1 = w1.contiguous();
  c.b1 = b1.contiguous();
  c.w2 = w2.contiguous();
  c.b2 = b2.contiguous();
  c.args.shape = {N, K, d, h, D};
  c.args.dropout_p = dropout_p;
  c.args.x = c.x.const_data_ptr();
  c.args.gate_weight = c.gate_weight.const_data_ptr();
  c.args.gate_bias = c.gate_bias.const_data_ptr();
  c.args.w1 = c.w1.const_data_ptr();
  c.args.b1 = c.b1.const_data_ptr();
  c.args.w2 = c.w2.const_data_ptr();
  c.args.b2 = c.b2.const_data_ptr();
  c.args.gemm = &host_gemm;
  c.args.workers = at::in_parallel_region() ? 1 : std::min(at::get_num_threads(), kMoeMaxWorkers);
#if defined(XFER_WITH_CUDA)
  if (x.is_cuda()) {
    const c10::DeviceGuard guard(x.device());  // its shared memory decides
    TORCH_CHECK(moe_mlp_mix_supported_cuda(c.args.shape, c.args.dtype), "moe_mlp_mix(): in_dim = ", d,
                ", hidden_dim = ", h, ", out_dim = ", D, ", num_experts = ", K, " in ", x.scalar_type(),
                " do not fit the shared memory of ", x.device(),
                "; xfercore.moe_mlp_mix composes such shapes from "
                "torch's own ops");
  }
#endif
  return c;
}

using Five = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Five forward(const at::Tensor& x, const at::Tensor& gate_weight, const at::Tensor& gate_bias, const at::Tensor& w1,
             const at::Tensor& b1, const at::Tensor& w2, const at::Tensor& b2,
             const std::optional<at::Tensor>& seed_offset, double dropout_p, c10::string_view act1,
             c10::string_view act2, c10::string_view mix, bool detach_gate_input, bool keep) {
  (void)detach_gate_input;
  Checked c = check_arguments(x, gate_weight, gate_bias, w1, b1, w2, b2, seed_offset, dropout_p, act1, act2, mix);
  const MoeMlpMixShape& s = c.args.shape;
  at::Tensor out = at::empty({s.num_tokens, s.out_dim}, c.options());
  at::Tensor gate_logits = at::empty({s.num_tokens, s.num_experts}, c.options());
  at::Tensor hidden =
      keep ? empty_large({s.num_tokens, s.num_experts, s.hidden_dim}, c.options()) : at::empty({0}, c.options());
  at::Tensor expert_out =
      keep ? empty_large({s.num_tokens, s.num_experts, s.out_dim}, c.options()) : at::empty({0}, c.options());
  // Only CUDA's backward pass reads it; the CPU's sums the experts again, in the order of the forward pass.
  const bool keep_lse = c.x.is_cuda() && c.args.mix == Mix::logsumexp;
  at::Tensor lse = keep_lse ? at::empty({s.num_tokens, s.out_dim}, c.options().dtype(at::kFloat))
                            : at::empty({0}, c.options().dtype(at::kFloat));
  if (s.num_tokens == 0) return {out, gate_logits, hidden, expert_out, lse};
  c.args.out = out.mutable_data_ptr();
  c.args.gate_logits = gate_logits.mutable_data_ptr();
  c.args.hidden = keep ? hidden.mutable_data_ptr() : nullptr;
  c.args.expert_out = keep ? expert_out.mutable_data_ptr() : nullptr;
  c.args.lse = keep_lse ? lse.mutable_data_ptr<float>() : nullptr;
  if (c.x.is_cuda()) {
    launch_cuda(XFER_CUDA_LAUNCHER(moe_mlp_mix_forward_cuda), check.op(), c.x, c.args, c.args.stream);
  } else {
    const int64_t bytes = moe_mlp_mix_forward_scratch_bytes(s, c.args.dtype, c.args.workers);
    at::Tensor scratch = empty_large({bytes}, c.options().dtype(at::kByte));
    c.args.scratch = scratch.mutable_data_ptr();
    moe_mlp_mix_forward_cpu(c.args);
  }
  return {out, gate_logits, hidden, expert_out, lse};
}

using Seven = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Seven backward(const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_gate_logits, const at::Tensor& x,
               const at::Tensor& gate_weight, const at::Tensor& gate_bias, const at::Tensor& w1, const at::Tensor& b1,
               const at::Tensor& w2, const at::Tensor& b2, const at::Tensor& lse, const at::Tensor& gate_logits,
               const at::Tensor& hidden, const at::Tensor& expert_out, const std::optional<at::Tensor>& seed_offset,
               double dropout_p, c10::string_view act1, c10::string_view act2, c10::string_view mix,
               bool detach_gate_input, std::array<bool, 7> wanted) {
  Checked c = check_arguments(x, gate_weight, gate_bias, w1, b1, w2, b2, seed_offset, dropout_p, act1, act2, mix);
  const MoeMlpMixShape& s = c.args.shape;
  check.sizes(grad_out, "grad_out", {s.num_tokens, s.out_dim}, "[num_tokens, out_dim]");
  check.like(grad_out, "grad_out", x, "x");
  check.sizes(gate_logits, "gate_logits", {s.num_tokens, s.num_experts}, "[num_tokens, num_experts]");
  const bool kept = hidden.numel() > 0 || expert_out.numel() > 0;
  if (kept) {
    check.sizes(hidden, "hidden", {s.num_tokens, s.num_experts, s.hidden_dim}, "[num_tokens, num_experts, hidden_dim]");
    check.sizes(expert_out, "expert_out", {s.num_tokens, s.num_experts, s.out_dim},
                "[num_tokens, num_experts, out_dim]");
  }
  const std::array<const at::Tensor*, 7> inputs{&c.x, &c.gate_weight, &c.gate_bias, &c.w1, &c.b1, &c.w2, &c.b2};
  std::array<at::Tensor, 7> grads;
  for (size_t i = 0; i < 7; ++i) {
    if (wanted[i]) {
      grads[i] =
          s.num_tokens == 0 ? at::zeros(inputs[i]->sizes(), c.options()) : at::empty(inputs[i]->sizes(), c.options());
    } else {
      grads[i] = at::empty({0}, c.options());
    }
  }
  const auto as_tuple = [&] { return Seven{grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], grads[6]}; };
  if (s.num_tokens == 0) return as_tuple();

  const at::Tensor grad_out_ = grad_out.contiguous(), lse_ = lse.contiguous(), logits_ = gate_logits.contiguous();
  const at::Tensor hidden_ = hidden.contiguous(), expert_out_ = expert_out.contiguous();
  at::Tensor grad_logits_;
  MoeMlpMixBackwardArgs args{};
  if (grad_gate_logits.has_value()) {
    check.sizes(*grad_gate_logits, "grad_gate_logits", {s.num_tokens, s.num_experts}, "[num_tokens, num_experts]");
    check.like(*grad_gate_logits, "grad_gate_logits", x, "x");
    grad_logits_ = grad_gate_logits->contiguous();
    args.grad_gate_logits = grad_logits_.const_data_ptr();
  }
  args.forward = c.args;
  // The forward pass's results are inputs here; the struct is shared, so constness ends.
  if (lse_.numel() > 0) {
    check.sizes(lse_, "lse", {s.num_tokens, s.out_dim}, "[num_tokens, out_dim]");
    args.forward.lse = const_cast<float*>(lse_.const_data_ptr<float>());
  }
  args.forward.gate_logits = const_cast<void*>(logits_.const_data_ptr());
  args.forward.hidden = kept ? const_cast<void*>(hidden_.const_data_ptr()) : nullptr;
  args.forward.expert_out = kept ? const_cast<void*>(expert_out_.const_data_ptr()) : nullptr;
  args.grad_out = grad_out_.const_data_ptr();
  args.detach_gate_input = detach_gate_input;
  const auto pointer = [&](size_t i) { return wanted[i] ? grads[i].mutable_data_ptr() : nullptr; };
  args.grad_x = pointer(0);
  args.grad_gate_weight = pointer(1);
  args.grad_gate_bias = pointer(2);
  args.grad_w1 = pointer(3);
  args.grad_b1 = pointer(4);
  args.grad_w2 = pointer(5);
  args.grad_b2 = pointer(6);
  at::Tensor scratch;  // alive until the launch is enqueued; torch's allocator orders its reuse by stream
  if (c.x.is_cuda()) {
    const c10::DeviceGuard guard(c.x.device());  // the workspace depends on its shared memory
#if defined(XFER_WITH_CUDA)
    scratch = at::empty({moe_mlp_mix_backward_workspace_bytes_cuda(s, c.args.dtype)}, c.options().dtype(at::kByte));
    args.workspace = scratch.mutable_data_ptr();
#endif
    launch_cuda(XFER_CUDA_LAUNCHER(moe_mlp_mix_backward_cuda), check.op(), c.x, args, args.forward.stream);
  } else {
    const int64_t bytes = moe_mlp_mix_backward_scratch_bytes(s, c.args.dtype, c.args.workers);
    scratch = empty_large({bytes}, c.options().dtype(at::kByte));
    args.forward.scratch = scratch.mutable_data_ptr();
    moe_mlp_mix_backward_cpu(args);
  }
  return as_tuple();
}

// Casts every floating input to autocast's dtype, as a chain of linear layers would.
Five autocast_forward(const at::Tensor& x, const at::Tensor& gate_weight, const at::Tensor& gate_bias,
                      const at::Tensor& w1, const at::Tensor& b1, const at::Tensor& w2, const at::Tensor& b2,
                      const std::optional<at::Tensor>& seed_offset, double dropout_p, c10::string_view act1,
                      c10::string_view act2, c10::string_view mix, bool detach_gate_input, bool keep) {
  const AutocastOff guard;
  const AutocastTo cast(x.device().type());
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("xfercore::moe_mlp_mix", "").typed<decltype(forward)>();
  return op.call(cast(x), cast(gate_weight), cast(gate_bias), cast(w1), cast(b1), cast(w2), cast(b2), seed_offset,
                 dropout_p, act1, act2, mix, detach_gate_input, keep);
}

}  // namespace

bool moe_mlp_mix_supported(int device_index, const std::string& dtype, int64_t num_experts, int64_t in_dim,
                           int64_t hidden_dim, int64_t out_dim) {
#if defined(XFER_WITH_CUDA)
  const c10::DeviceGuard guard(c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device_index)));
  const DType kind = dtype == "float32" ? DType::f32 : dtype == "bfloat16" ? DType::bf16 : DType::f16;
  return moe_mlp_mix_supported_cuda({1, num_experts, in_dim, hidden_dim, out_dim}, kind);
#else
  (void)device_index, (void)dtype, (void)num_experts, (void)in_dim, (void)hidden_dim, (void)out_dim;
  return true;  // the op itself says that this build has no CUDA kernels
#endif
}

}  // namespace xfer::bindings

TORCH_LIBRARY_FRAGMENT(xfercore, m) {
  m.def(
      "moe_mlp_mix(Tensor x, Tensor gate_weight, Tensor gate_bias, Tensor w1, Tensor b1, Tensor w2, Tensor b2, "
      "Tensor? seed_offset, float dropout_p, str act1, str act2, str mix, bool detach_gate_input, bool keep) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "moe_mlp_mix_backward(Tensor grad_out, Tensor? grad_gate_logits, Tensor x, Tensor gate_weight, "
      "Tensor gate_bias, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor lse, Tensor gate_logits, Tensor hidden, "
      "Tensor expert_out, Tensor? seed_offset, float dropout_p, str act1, str act2, str mix, bool detach_gate_input, "
      "bool[7] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
#define XFER_IMPL(key)                                         \
  TORCH_LIBRARY_IMPL(xfercore, key, m) {                       \
    m.impl("moe_mlp_mix", &xfer::bindings::forward);           \
    m.impl("moe_mlp_mix_backward", &xfer::bindings::backward); \
  }
XFER_IMPL(CPU)
XFER_IMPL(CUDA)
TORCH_LIBRARY_IMPL(xfercore, AutocastCPU, m) { m.impl("moe_mlp_mix", &xfer::bindings::autocast_forward); }
TORCH_LIBRARY_IMPL(xfercore, AutocastCUDA, m) { m.impl("moe_mlp_mix", &xfer::bindings::autocast_forward); }
