"""What a checkpoint keeps comes back to the bit; what cannot be kept or should not load is refused in a sentence."""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from harness import state_hash
from scenarios import IDENTITY
from torch import Tensor, nn

from xferkit.checkpoints import (
    CheckpointError,
    CheckpointStore,
    read_tensors,
    write_folder,
)
from xferkit.checkpoints.tensor_file import DTYPE_NAMES


def _round_trip(tmp_path: Path, state: dict[str, Any]) -> dict[str, Any]:
    store = CheckpointStore(tmp_path / "store")
    with store.locked():
        store.save(1, state, IDENTITY)
    found = store.load_newest(IDENTITY)
    assert found is not None and found.step == 1 and not found.skipped
    return found.state


def _random(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    if dtype is torch.bool:
        return torch.rand(shape) < 0.5
    raw = torch.randint(0, 256, (size,), dtype=torch.uint8)  # any bit pattern, NaNs with payloads too
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("dtype", [*DTYPE_NAMES, torch.complex128], ids=str)
def test_every_dtype_and_shape_comes_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = [(), (0,), (1,), (3, 0, 2), (5, 7), (2, 3, 4)]
    state = {f"t{n}": _random(dtype, shape) for n, shape in enumerate(shapes)}
    back = _round_trip(tmp_path, state)
    assert list(back) == list(state)
    for name, tensor in state.items():
        assert back[name].dtype is dtype and back[name].shape == tensor.shape
        assert state_hash(back[name]) == state_hash(tensor)


def test_strides_views_and_shared_memory(tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    complex_base = torch.randn(4, dtype=torch.complex64)
    state = {
        "base": base,
        "same": base,
        "parameter": nn.Parameter(base),
        "turned": base.t(),
        "strided": base[::2, 1::3],
        "offset": base[3:],
        "expanded": base[:1].expand(4, 8),
        "conjugated": complex_base.conj(),
        "plain": complex_base,
        "negated": complex_base.conj().imag,
    }
    back = _round_trip(tmp_path, state)
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor.detach()), name
        assert not back[name].requires_grad and back[name].is_contiguous() and not back[name].is_conj()
    file = tmp_path / "store/step-00000001/tensors.safetensors"
    kept = read_tensors(file)
    assert "same" not in kept and "parameter" not in kept and "turned" in kept
    back["same"].zero_()
    assert torch.equal(back["base"], base), "two places of one tensor must not share memory after loading"


def test_plain_values_come_back_with_their_types(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "int": 7,
        "big": 2**200,
        "negative": -(2**63),
        "float": 0.1 + 0.2,
        "minus zero": -0.0,
        "tiny": 5e-324,
        "inf": [math.inf, -math.inf],
        "nan": struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0],
        "bool": [True, False],
        "none": None,
        "text": "größer \x00 \ud800 \U0001f600",
        "bytes": b"\x00\xff",
        "no bytes": b"",
        "tuple": (1, (2.0, [3]), ()),
        "keys": {0: "int", "0": "str", -5: {}, "$tensor": "not one", "": []},
        "one key": {"$float": "text"},
        "ordered": OrderedDict(b=1, a=2),
        "empty": {},
        "a/b": {"c": torch.tensor(1)},
        "a": {"b/c": torch.tensor(2), "b": {"c": torch.tensor(3)}},
        "__metadata__": torch.tensor(4),
        "\ud800": torch.tensor(5),
        "tree": {1: torch.tensor(6), "1": torch.tensor(7)},
    }
    back = _round_trip(tmp_path, state)
    assert state_hash(back) == state_hash(state)
    assert (
        type(back["tuple"]) is tuple and type(back["tuple"][1][1]) is list and type(back["ordered"]) is dict
    )
    assert list(back["ordered"]) == ["b", "a"] and math.copysign(1, back["minus zero"]) == -1
    assert struct.pack(">d", back["nan"]).hex() == "7ff8000000000123"


def test_a_training_s_own_states_come_back(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1), betas=(0.8, 0.9))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD(model.parameters(), 0.1), 10)
    for _ in range(3):
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "scaler": torch.amp.GradScaler("cpu", enabled=True).state_dict(),
        "rng": torch.get_rng_state(),
    }
    back = _round_trip(tmp_path, state)
    assert state_hash(back) == state_hash(state)
    fresh = torch.optim.AdamW(nn.Linear(4, 3).parameters())
    fresh.load_state_dict(back["optimizer"])
    assert state_hash(fresh.state_dict()) == state_hash(state["optimizer"])


class _Odd(Tensor):
    pass


CANNOT_BE_KEPT: dict[str, tuple[Any, str]] = {
    "numpy array": (np.zeros(3), "numpy.ndarray"),
    "numpy float": (np.float64(1), "numpy.float64"),
    "set": ({1}, "builtins.set"),
    "complex": (1j, "builtins.complex"),
    "object": (object(), "builtins.object"),
    "dtype": (torch.float32, "torch.dtype"),
    "function": (print, "builtins.builtin_function"),
    "key": ({1.5: 2}, "the key 1.5"),
    "bool key": ({True: 2}, "the key True"),
    "sparse": (torch.eye(3).to_sparse(), "sparse_coo"),
    "meta": (torch.empty(3, device="meta"), "meta device"),
    "subclass": (torch.zeros(3).as_subclass(_Odd), "_Odd"),
    "huge int": (1 << 5000, "4096 bits"),
}


@pytest.mark.parametrize("what", CANNOT_BE_KEPT)
def test_what_cannot_be_kept_is_named_with_its_place(tmp_path: Path, what: str) -> None:
    value, named = CANNOT_BE_KEPT[what]
    store = CheckpointStore(tmp_path)
    with store.locked():
        store.save(1, {"fine": 1}, IDENTITY)
        with pytest.raises(CheckpointError) as raised:
            store.save(2, {"fine": 1, "list": [0, {"bad": value}]}, IDENTITY)
        assert "state['list'][1]['bad']" in str(raised.value) and named in str(raised.value)
        assert store.steps() == [1] and store.load_newest(IDENTITY) is not None


def test_endless_nesting_and_long_trees_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless: list[Any] = []
    endless.append(endless)
    store = CheckpointStore(tmp_path)
    with store.locked():
        with pytest.raises(CheckpointError, match=r"state\['x'\]\[0\]\[0\] is nested deeper than 100"):
            store.save(1, {"x": endless}, IDENTITY)
        monkeypatch.setattr("xferkit.checkpoints.tree.MAX_TREE_BYTES", 100)
        with pytest.raises(CheckpointError, match="at most 100 are allowed; keep long lists as tensors"):
            store.save(1, {"x": list(range(100))}, IDENTITY)


def test_a_dtensor_is_refused(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        tensor = distribute_tensor(torch.zeros(4), mesh)
        store = CheckpointStore(tmp_path / "store")
        with store.locked(), pytest.raises(CheckpointError, match=r"state\['w'\] is a DTensor; gather it"):
            store.save(1, {"w": tensor}, IDENTITY)
    finally:
        dist.destroy_process_group()


def test_the_public_library_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    tensors = {
        f"{d}/{n}": _random(d, s) for d in DTYPE_NAMES for n, s in enumerate([(), (3,), (0, 2), (4, 5)])
    }
    tensors = {
        k: v for k, v in tensors.items() if v.dtype is not torch.float8_e8m0fnu
    }  # the library cannot read it
    write_folder(tmp_path / "m", {"a.safetensors": tensors}, kind="model")
    theirs = safetensors.torch.load_file(tmp_path / "m/a.safetensors")
    assert state_hash(dict(sorted(theirs.items()))) == state_hash(dict(sorted(tensors.items())))
    safetensors.torch.save_file(tensors, tmp_path / "b.safetensors", metadata={"format": "pt"})
    ours = read_tensors(tmp_path / "b.safetensors")
    assert state_hash(dict(sorted(ours.items()))) == state_hash(dict(sorted(tensors.items())))


@pytest.mark.gpu
def test_tensors_of_a_gpu_come_back_on_the_cpu(tmp_path: Path) -> None:
    state = {"w": torch.randn(5, 7, device="cuda").t(), "rng": torch.cuda.get_rng_state()}
    back = _round_trip(tmp_path, state)
    assert back["w"].device.type == "cpu" and torch.equal(back["w"], state["w"].cpu())
    assert state_hash(back) == state_hash(state)
