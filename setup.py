"""Build of xfercore/_C by CMake against the torch that is installed already.

Environment: XFER_CUDA=auto|0|1 (auto: CUDA kernels when nvcc exists), XFER_CUDA_ARCHS (CMake notation, e.g.
"80-real;90a-real"), XFER_TORCH_DIR (folder of the torch package where it cannot be found), XFER_CXX_FLAGS.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MINIMAL_CUDA = 12  # the first whose nvcc compiles C++20
NO_TORCH = (
    "xfercore: no torch found to build against. Install torch >= 2.11 first (pip install torch), then build again; "
    "under uv or `python -m build` add --no-build-isolation or set XFER_TORCH_DIR to the folder of the torch package."
)


def fail(sentence: str) -> None:
    """One sentence instead of a traceback: what is missing and what to do."""
    raise SystemExit(sentence)


def torch_paths() -> tuple[Path, str, int]:
    """Folder, version and C++ ABI of the torch to build against."""
    given = os.environ.get("XFER_TORCH_DIR")
    if given:
        sys.path.insert(0, str(Path(given).resolve().parent))
    try:
        import torch
    except ImportError:
        # pip's build isolation hides the environment's packages, but it still tells where they lie.
        # Appended, not prepended: the build environment's own setuptools keeps its precedence.
        sys.path.append(sysconfig.get_path("purelib"))
        sys.path.append(sysconfig.get_path("platlib"))
        try:
            import torch
        except ImportError:
            fail(NO_TORCH)
    version = torch.__version__
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < (2, 11):
        fail(f"xfercore needs torch >= 2.11, found {version}: pip install --upgrade torch.")
    return Path(torch.__file__).resolve().parent, version, int(torch._C._GLIBCXX_USE_CXX11_ABI)


def find_nvcc() -> str | None:
    """nvcc on the PATH, under CUDA_HOME or in the usual folder."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [shutil.which("nvcc"), *(str(Path(home) / "bin" / "nvcc") for home in homes if home)]
    return next((nvcc for nvcc in candidates if nvcc and Path(nvcc).exists()), None)


def want_cuda() -> str | None:
    """The nvcc to use, or None for a build without CUDA kernels."""
    choice = os.environ.get("XFER_CUDA", "auto").lower()
    if choice not in ("auto", "0", "1"):
        fail(f"XFER_CUDA={choice!r} is not one of auto, 0, 1.")
    nvcc = find_nvcc()
    if choice == "1" and nvcc is None:
        fail("XFER_CUDA=1 asks for CUDA kernels, but no nvcc was found on PATH or under CUDA_HOME.")
    if choice == "0" or nvcc is None:
        return None
    reported = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.", reported)
    if release is None or int(release[1]) < MINIMAL_CUDA:
        sentence = (
            f"{nvcc} is CUDA {release[1] if release else '?'}, and the kernels need CUDA >= {MINIMAL_CUDA}"
        )
        if choice == "1":
            fail(f"XFER_CUDA=1: {sentence}.")
        print(f"xfercore: {sentence}: building without them.", flush=True)
        return None
    return nvcc


def has_compiler() -> bool:
    """Whether a C++ compiler is at hand."""
    return any(
        shutil.which(name) for name in [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
    )


def find_tool(name: str) -> str:
    """The executable beside this interpreter, on the PATH, or inside the Python package of that name."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found:
        return found
    try:
        module = __import__(name)
    except ImportError:
        fail(f"xfercore: {name} is needed to build and was not found: pip install {name}.")
    folder = getattr(module, "BIN_DIR", None) or module.CMAKE_BIN_DIR
    return str(Path(folder) / name)


class CMakeBuild(build_ext):
    """Runs CMake and Ninja; the module lands beside the package (editable) or in the wheel."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        torch_dir, torch_version, abi = torch_paths()
        if not has_compiler():
            fail("xfercore: no C++ compiler found. Install one (Debian, Ubuntu: apt install g++) or set CXX.")
        if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
            fail(
                "xfercore: Python's headers are missing (Python.h). Debian, Ubuntu: apt install python3-dev."
            )
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # Under build isolation packages move from build to build: a cached tree would point into a deleted folder.
        build_dir = Path(os.environ.get("XFER_BUILD_DIR") or Path(self.build_temp).resolve())
        build_dir.mkdir(parents=True, exist_ok=True)
        (build_dir / "CMakeCache.txt").unlink(missing_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "Python_EXECUTABLE": sys.executable,
            "XFER_TORCH_DIR": str(torch_dir),
            "XFER_TORCH_VERSION": torch_version,
            "XFER_TORCH_CXX11_ABI": str(abi),
            "XFER_OUTPUT_DIR": str(target.parent),
            "XFER_OUTPUT_NAME": target.name,
            "XFER_EXTRA_CXX_FLAGS": os.environ.get("XFER_CXX_FLAGS", ""),
        }
        nvcc = want_cuda()
        if nvcc:
            options |= {"XFER_WITH_CUDA": "ON", "CMAKE_CUDA_COMPILER": nvcc}
            if os.environ.get("XFER_CUDA_ARCHS"):
                options["XFER_CUDA_ARCHS"] = os.environ["XFER_CUDA_ARCHS"]
        print(f"xfercore: building against torch {torch_version}, CUDA kernels: {nvcc or 'no'}", flush=True)
        program = find_tool("cmake")
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        try:
            subprocess.run([program, "-G", "Ninja", "-S", ROOT, "-B", build_dir, *definitions], check=True)
            subprocess.run(
                [program, "--build", build_dir, "--parallel", str(os.cpu_count() or 1)], check=True
            )
        except subprocess.CalledProcessError as error:
            way_out = "; XFER_CUDA=0 builds without the CUDA kernels" if nvcc else ""
            code = error.returncode
            fail(
                f"xfercore: the build failed (exit code {code}), as the compiler's message above says{way_out}."
            )


setup(
    ext_modules=[Extension("xfercore._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
