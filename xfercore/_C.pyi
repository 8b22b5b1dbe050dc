"""The compiled module: registers the ops on import."""

from typing import TypedDict

class BuildInfo(TypedDict):
    torch: str
    cuda: str | None
    cuda_archs: str | None
    compiler: str
    cpu_isa: str

def build_info() -> BuildInfo: ...
