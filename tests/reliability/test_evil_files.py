"""Files made to run code, to fill the memory or to lead elsewhere: each is refused with a sentence, nothing is run.

The checksums of most are right: an attacker can compute them. What a checkpoint may do is decided by its form alone.
"""

from __future__ import annotations

import ast
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import HERE, ROOT
from scenarios import IDENTITY

from xferkit.checkpoints import CheckpointStore
from xferkit.checkpoints.manifest import MANIFEST_NAME, Manifest
from xferkit.checkpoints.tensor_file import FileEntry

T, S, M = "tensors.safetensors", "state.json", MANIFEST_NAME


class _Bomb:
    """Runs a command when a pickle of it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def _pickle(protocol: int) -> bytes:
    import pickle  # the attacker's tool, in this test alone

    return pickle.dumps(_Bomb(), protocol)


def _torch_file(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": _Bomb()}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _numpy_file() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.array([_Bomb()], dtype=object))
    return buffer.getvalue()


def _zip_in_head() -> bytes:
    """A safetensors file that is a zip archive of a pickle as well."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", _pickle(2))
    return _head({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}) + b"\0" + buffer.getvalue()


def _head(entries: Any, length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


def _entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> bytes:
    return _head({"w": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}) + bytes(8)


YAML = b"!!python/object/apply:os.system ['touch executed']\n"

# Name of the case: file, its content (checksums are set right), what the sentence says.
CONTENTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "pickle 0 as tensors": (T, lambda: _pickle(0), "no safetensors file"),
    "pickle 5 as tensors": (T, lambda: _pickle(5), "no safetensors file"),
    "pickle as state": (S, lambda: _pickle(4), "no valid JSON"),
    "torch zip file": (T, lambda: _torch_file(True), "no safetensors file"),
    "old torch file": (T, lambda: _torch_file(False), "no safetensors file"),
    "npz of objects": (T, _numpy_file, "no safetensors file"),
    "zip in safetensors": (T, _zip_in_head, "the tensors fill 1 bytes of"),
    "yaml tag as state": (S, lambda: YAML, "no valid JSON"),
    "head longer than the file": (T, lambda: _head(b"{}", 2**63), "does not fit into it"),
    "head is a list": (T, lambda: _head([]), "the head is a list"),
    "head nested 100,000 deep": (T, lambda: _head(b"[" * 100_000), "nested too deeply"),
    "name twice": (T, lambda: _head(b'{"w":{},"w":{}}'), "a key comes twice"),
    "offsets below zero": (T, lambda: _entry(offsets=(-8, 0)), "entry 'w' is not valid"),
    "offsets past the end": (T, lambda: _entry(shape=(2**40,), offsets=(0, 2**42)), "the tensors fill"),
    "shape that overflows": (T, lambda: _entry(shape=(2**33, 2**33, 2**33)), "entry 'w' is not valid"),
    "empty shape that overflows": (
        T,
        lambda: _entry(shape=(0, 2**62, 2**62), offsets=(0, 0)),
        "entry 'w' is not",
    ),
    "shape of floats": (T, lambda: _entry(shape=(2.0,)), "entry 'w' is not valid"),
    "unknown dtype": (T, lambda: _entry(dtype="__import__"), "entry 'w' is not valid"),
    "boolean of 7": (
        T,
        lambda: _entry(dtype="BOOL", shape=(8,))[:-1] + b"\7",
        "booleans that are neither 0 nor 1",
    ),
    "state nested 100,000 deep": (S, lambda: b'{"a":' * 100_000, "nested too deeply"),
    "state nested 200 deep": (S, lambda: b'{"a":' * 200 + b"1" + b"}" * 200, "nested deeper than 100"),
    "state with NaN": (S, lambda: b'{"a": NaN}', "NaN is not JSON"),
    "state of a number with 10,000 digits": (S, lambda: b'{"a": ' + b"9" * 10_000 + b"}", "no valid JSON"),
    "state with an unknown kind": (S, lambda: b'{"a": {"$eval": "1"}}', "no valid '$eval'"),
    "state with a missing tensor": (S, lambda: b'{"a": {"$tensor": "../../x"}}', "not in the file"),
    "state that is not UTF-8": (S, lambda: b'{"a": "\xff"}', "no valid JSON"),
    "state with an unhashable key": (S, lambda: b'{"$dict": [[[], 1]]}', "no valid '$dict'"),
    "state that is a list": (S, lambda: b"[]", "expected an object"),
}


def _manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        from xferkit.checkpoints.manifest import _sealed

        content = json.loads((folder / M).read_bytes())
        del content["sha256"]
        change(content)
        (folder / M).write_bytes(_sealed(json.dumps(content).encode().removesuffix(b"}")))

    return apply


def _replace_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / T).unlink()
        make(folder / T)

    return apply


def _huge(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        with open(folder / name, "r+b") as file:
            file.truncate(2**40)  # a hole: it takes no room

    return apply


# Name of the case: what is done to the checkpoint's folder, what the sentence says.
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "file outside the folder": (
        _manifest(lambda c: c["files"].update({"../../x": c["files"][S]})),
        "no name of a file",
    ),
    "absolute file": (
        _manifest(lambda c: c["files"].update({"/etc/passwd": c["files"][S]})),
        "no name of a file",
    ),
    "manifest lists itself": (
        _manifest(lambda c: c["files"].update({M: c["files"][S]})),
        "no name of a file",
    ),
    "length of true": (
        _manifest(lambda c: c["files"][S].update(bytes=True)),
        "the length of 'state.json' is 'True'",
    ),
    "length of 1e999": (
        _manifest(lambda c: c["files"][S].update(bytes=10**400)),
        "the length of 'state.json' is '1000",
    ),
    "step below zero": (_manifest(lambda c: c.update(step=-1)), "step is '-1'"),
    "files is a list": (_manifest(lambda c: c.update(files=[])), "no valid manifest"),
    "no files": (_manifest(lambda c: c.update(files={})), "does not list 'tensors.safetensors'"),
    "another format": (_manifest(lambda c: c.update(format="x")), "no manifest of"),
    "manifest of 1 TiB": (_huge(M), "more than the 1048576 allowed"),
    "tensors of 1 TiB": (_huge(T), "bytes, but"),
    "named pipe": (_replace_by(os.mkfifo), "is not a regular file"),
    "folder as file": (_replace_by(Path.mkdir), "is not a regular file"),
    "link to an endless file": (_replace_by(lambda p: p.symlink_to("/dev/zero")), "is not a regular file"),
    "link to itself": (_replace_by(lambda p: p.symlink_to(p)), "Too many levels of symbolic links"),
}


def _checkpoint(folder: Path) -> Path:
    store = CheckpointStore(folder)
    with store.locked():
        return store.save(1, {"a": 1}, IDENTITY)


def _seal(folder: Path, name: str, content: bytes) -> None:
    """Put content into a checkpoint with a manifest that is right about it."""
    import hashlib

    manifest = Manifest.parse(folder / M, (folder / M).read_bytes())
    files = dict(manifest.files) | {name: FileEntry(len(content), hashlib.sha256(content).hexdigest())}
    (folder / name).write_bytes(content)
    (folder / M).write_bytes(Manifest(manifest.kind, files, manifest.identity, manifest.step).to_bytes())


# Loads every folder it is given, in one process whose every dangerous act is recorded.
LOADER = """
import json, re, resource, sys, time
from pathlib import Path
from xferkit.checkpoints import CheckpointError, CheckpointStore
CheckpointStore(Path(sys.argv[1]) / "warm")
acts = []
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn",
             "socket.connect", "pickle.find_class", "marshal.loads", "exec", "compile", "import",
             "ctypes.dlopen", "os.remove", "shutil.rmtree")
def watch(event, args):
    if event in FORBIDDEN or (event == "open" and isinstance(args[2], int) and args[2] & 3):
        acts.append(f"{event} {args!r:.200}")
sys.addaudithook(watch)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for folder in sorted(Path(sys.argv[1]).glob("case-*")):
    acts.clear()
    start = time.monotonic()
    try:
        answer = f"loaded {CheckpointStore(folder).load_newest(None)}"
    except CheckpointError as error:
        answer = str(error)
    except BaseException as error:
        answer = f"crashed: {type(error).__name__}: {error}"
    seconds = time.monotonic() - start
    acts_of_this, acts[:] = list(acts), []
    # Not ru_maxrss: a child starts with that of its parent.
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
    print(json.dumps([folder.name, answer, acts_of_this, seconds, peak]), flush=True)
"""


def test_evil_files_run_no_code_and_are_refused_with_a_sentence(tmp_path: Path) -> None:
    said = {}
    for number, (name, (file, content, sentence)) in enumerate(CONTENTS.items()):
        folder = tmp_path / f"case-{number:02d}"
        _seal(_checkpoint(folder), file, content())
        said[folder.name] = (name, sentence)
    for number, (name, (apply, sentence)) in enumerate(FOLDERS.items(), len(CONTENTS)):
        folder = tmp_path / f"case-{number:02d}"
        apply(_checkpoint(folder))
        said[folder.name] = (name, sentence)
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=120,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"evil files: planned {len(said)}, executed {len(rows)}")
    assert len(rows) == len(said) >= 40, done.stderr
    for folder_name, answer, acts, seconds, peak in rows:
        name, sentence = said[folder_name]
        assert "has no valid checkpoint left" in answer and sentence in answer, (name, answer)
        assert f"{folder_name}/step-00000001" in answer and len(answer) < 1000, (name, answer)
        assert acts == [], (name, acts)
        assert seconds < 5 and peak < 2**20, (name, seconds, peak)  # KiB
    assert not list(tmp_path.rglob("executed"))


def test_the_watch_sees_what_an_evil_file_does(tmp_path: Path) -> None:
    """The same hook around a real unpickling: so the test above can fail."""
    (tmp_path / "case-00").mkdir()
    (tmp_path / "bomb").write_bytes(_pickle(4))
    planted = LOADER.replace(
        "CheckpointStore(folder).load_newest(None)",
        "__import__('pickle').loads((folder.parent / 'bomb').read_bytes())",
    )
    done = subprocess.run(
        [sys.executable, "-c", planted, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HERE)},
    )
    (row,) = (json.loads(line) for line in done.stdout.splitlines())
    assert any("os.system" in act for act in row[2]) and (tmp_path / "executed").exists()


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "os.system",
}


def dangerous(source: str) -> list[str]:
    """What in a Python source could run a file's content as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        if any(n.split(".")[0] in FORBIDDEN_MODULES or n in FORBIDDEN_METHODS for n in names):
            found.append(f"{node.lineno}: import of {names}")
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if (
                name in FORBIDDEN_CALLS
                or name in FORBIDDEN_METHODS
                or name.split(".")[0] in FORBIDDEN_MODULES
            ):
                found.append(f"{node.lineno}: {name}()")
            for keyword in node.keywords:
                unsafe = keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
                unsafe |= keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
                unsafe |= keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
                if unsafe:
                    found.append(f"{node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}")
    return found


def test_nothing_in_the_packages_loads_pickles_or_evaluates_text() -> None:
    files = sorted(
        p for package in ("xfercore", "python_api/xferkit") for p in (ROOT / package).rglob("*.py")
    )
    assert len(files) > 100
    assert {str(p.relative_to(ROOT)): bad for p in files if (bad := dangerous(p.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "from torch import load",
        "yaml.load(text, Loader=x)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_lint_finds_each(line: str) -> None:
    assert dangerous(line)
    assert not dangerous(
        "model.eval(); np.load(path, allow_pickle=False); json.loads(text); torch.compile(f)"
    )
