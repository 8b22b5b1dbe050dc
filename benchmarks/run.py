"""Command line of the benchmarks: ``python benchmarks/run.py --op moe_mlp_mix --json out.json``.

Eager PyTorch gets much faster on large CPU temporaries with ``THP_MEM_ALLOC_ENABLE=1``, which must stand in
the environment before torch starts, so the rows are measured in child processes, one per setting asked for.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.harness import Options

# After everything else, so that an installed xfercore goes before the source tree.
sys.path.append(str(Path(__file__).resolve().parent.parent))

OPS = {
    "moe_mlp_mix": ("benchmarks.ops.bench_moe_mlp_mix", "cases"),
    "gated_mix": ("benchmarks.ops.bench_gated_mix", "cases"),
    "grad_reverse": ("benchmarks.ops.bench_grad_reverse", "cases"),
    "linear_grad_reverse": ("benchmarks.ops.bench_grad_reverse", "linear_cases"),
    "inbatch_softmax_loss": ("benchmarks.ops.bench_inbatch_softmax_loss", "cases"),
    "hard_concrete": ("benchmarks.ops.bench_hard_concrete", "cases"),
    "topk_similarity": ("benchmarks.ops.bench_topk_similarity", "cases"),
    "gradient_surgery": ("benchmarks.ops.bench_gradient_surgery", "cases"),
}
SYSTEMS = {
    "man_moe_step": ("benchmarks.systems.bench_man_moe_step", "cases"),
    "man_moe_tagging": ("benchmarks.systems.bench_man_moe_tagging", "cases"),
    "surgery_step": ("benchmarks.systems.bench_surgery_step", "cases"),
    "readers": ("benchmarks.systems.bench_readers", "cases"),
}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--op", choices=[*OPS, "all"], help="op to measure")
    what.add_argument("--system", choices=list(SYSTEMS), help="training step, or the readers, to measure")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "float64"],
        default="float32",
        help="of the inputs",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with 1, CPU time is what counts")
    parser.add_argument(
        "--rounds", type=int, help="interleaved rounds (default 11; 3 with --quick; 50 on CUDA)"
    )
    parser.add_argument("--warmup", type=int, default=2, help="timed warm-up calls of a variant")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains TEXT")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds, no torch.compile")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="baselines under torch.compile"
    )
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="peak memory")
    parser.add_argument(
        "--thp",
        choices=["both", "on", "off", "inherit"],
        help="THP_MEM_ALLOC_ENABLE for the rows (default both; off on CUDA, for readers and with --quick)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    return parser


def _positive(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    for name in ("threads", "rounds", "warmup"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name}: expected a number of at least 1, got {value}")


def _options(args: argparse.Namespace) -> Options:
    import torch

    from benchmarks.harness import Options

    return Options(
        device=args.device,
        dtype=getattr(torch, args.dtype),
        quick=args.quick,
        compile=not args.quick if args.compile is None else args.compile,
        memory=args.memory,
        rounds=args.rounds or (3 if args.quick else 50 if args.device == "cuda" else 11),
        warmup=args.warmup,
        threads=args.threads,
    )


def _rows(args: argparse.Namespace, options: Options) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows asked for, each with its table; a module may measure its cases in a way of its own."""
    from benchmarks import harness, report

    for name in list(OPS) if args.op == "all" else [args.op or args.system]:
        module_name, function = {**OPS, **SYSTEMS}[name]
        module = importlib.import_module(module_name)
        own = module if "measure" in module.__all__ else None
        for case in getattr(module, function)(options):
            if args.only in case.name:
                row = (own or harness).measure(case)
                yield row, (own or report).table(row)


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures in this process, prints each row as it comes, and returns the process's part of the JSON."""
    import torch

    from benchmarks.report import environment

    torch.set_num_threads(args.threads)
    options = _options(args)
    where = environment(args.device)
    thp = "on" if where["thp_mem_alloc_enable"] else "off"
    hardware = where["gpu"] or f"{where['cpu']}, {where['cores']} cores"
    print(f"# {hardware}; torch {where['torch']}; {where['threads']} thread(s); huge pages for torch {thp}\n")
    rows = []
    for row, text in _rows(args, options):
        rows.append(row)
        print(text, end="\n\n", flush=True)
    return {"environment": where, "rows": rows}


def _child(argv: list[str], setting: str, threads: int) -> dict[str, Any] | int:
    """Runs this file again under one huge-page setting; its part of the JSON, or its exit status."""
    environ = dict(os.environ, THP_MEM_ALLOC_ENABLE="1" if setting == "on" else "0")
    environ |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.json"
        command = [sys.executable, __file__, *argv, "--thp", "inherit", "--json", str(part)]
        status = subprocess.run(command, env=environ).returncode
        if status:
            return status
        run: dict[str, Any] = json.loads(part.read_text())["runs"][0]
        return run


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(argv)
    _positive(parser, args)
    # Reading is Python's memory, not torch's.
    once = args.quick or args.device == "cuda" or args.system == "readers"
    thp = args.thp or ("off" if once else "both")
    runs = []
    if thp == "inherit":
        runs.append(_measure(args))
    else:
        for setting in ("off", "on") if thp == "both" else (thp,):
            run = _child(argv, setting, args.threads)
            if isinstance(run, int):
                return run
            runs.append(run)
    if args.json is not None:
        from benchmarks import SCHEMA_VERSION

        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"schema_version": SCHEMA_VERSION, "runs": runs}, indent=1) + "\n")
        if thp != "inherit":
            print(f"results: {args.json}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
