"""The compiled module: registers the ops on import."""

from typing import TypedDict

class BuildInfo(TypedDict):
    torch: str
    cuda: str | None
    cuda_archs: str | None
    compiler: str
    cpu_isa: str

def build_info() -> BuildInfo: ...
def moe_mlp_mix_supported(
    device_index: int, dtype: str, num_experts: int, in_dim: int, hidden_dim: int, out_dim: int
) -> bool: ...
