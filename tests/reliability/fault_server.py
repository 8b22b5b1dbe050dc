"""Runs scenarios in forked children whose k-th I/O call fails; started by the harness with the fault library preloaded.

Reads one JSON request a line: ``scenario`` ("module:function"), ``args`` (keyword arguments), ``folder`` (whose calls
count), ``k``, ``mode``, ``log`` (path or null), ``kill_after`` (seconds until SIGKILL, or null), ``timeout``. Answers
with one JSON line: ``status`` (exit code, or minus the signal), ``count``, ``fired``, ``value``, ``error``,
``seconds``, ``timed_out``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

MODES = {"none": 0, "kill": 1, "torn": 2, "full": 3, "broken": 4, "short": 5, "lie": 6}


def release_faults() -> None:
    """The disk has room again: no more faults in this process, wherever that is."""
    release = getattr(ctypes.CDLL(None), "fault_release", None)
    if release is not None:
        release()


def faults_fired() -> bool:
    """Whether a fault was injected into this process."""
    fired = getattr(ctypes.CDLL(None), "fault_fired", None)
    return bool(fired is not None and fired())


def io_calls() -> int:
    """I/O calls that were counted in this process so far."""
    count = getattr(ctypes.CDLL(None), "fault_count", None)
    return int(count()) if count is not None else 0


def _child(request: dict[str, Any], answer: int) -> int:
    module, name = request["scenario"].split(":")
    function = getattr(importlib.import_module(module), name)
    library = ctypes.CDLL(None)
    log = -1
    if request["log"]:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    library.fault_arm(os.fsencode(request["folder"]), request["k"], MODES[request["mode"]], log)
    status, value, error = 0, None, ""
    try:
        value = function(**request["args"])
    except BaseException as caught:
        status, error = 3, f"{type(caught).__name__}: {caught}"
        if request.get("trace"):
            traceback.print_exc()
    count, fired = library.fault_count(), library.fault_fired()
    library.fault_arm(b"/nowhere", 0, 0, -1)
    content = {"count": count, "fired": bool(fired), "value": value, "error": error}
    os.write(answer, json.dumps(content).encode())
    return status


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    receive, send = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.close(receive)
        os.dup2(2, 1)  # the answers' channel is the server's own
        status = 70
        try:
            status = _child(request, send)
        finally:
            os._exit(status)
    os.close(send)
    kill_after = request["kill_after"]
    deadline = start + (request["timeout"] if kill_after is None else kill_after)
    content = b""
    while True:
        ready, _, _ = select.select([receive], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            break
        part = os.read(receive, 1 << 16)
        if not part:
            break
        content += part
    _, status = os.waitpid(pid, 0)
    os.close(receive)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # whatever it started itself
    result: dict[str, Any] = {"count": 0, "fired": False, "value": None, "error": ""}
    code = os.waitstatus_to_exitcode(status)
    if content and code >= 0:
        result |= json.loads(content)
    timed_out = kill_after is None and time.monotonic() >= deadline
    return result | {"status": code, "timed_out": timed_out, "seconds": time.monotonic() - start}


def main() -> None:
    """Serve until the input ends."""
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    for module in sys.argv[1:]:
        imported = importlib.import_module(module)
        if hasattr(imported, "warm_up"):
            imported.warm_up()
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
