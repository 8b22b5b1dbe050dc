"""Exit codes, and how an exception becomes one sentence and one of them."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

__all__ = ["BAD_INPUT", "FAILED", "Terminated", "as_terminated", "guarded"]

OK, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED, BROKEN_PIPE = 0, 1, 2, 130, 143, 141

#: What a path, named by a person, can have wrong with it; anything else is a failure of the machine.
_PATH_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, FileExistsError)


class Terminated(KeyboardInterrupt):
    """SIGTERM: whoever cleans up after Ctrl-C cleans up after it too."""


def as_terminated(number: int, frame: FrameType | None) -> NoReturn:
    """A handler of SIGTERM."""
    raise Terminated


def guarded(prog: str, command: Callable[[], int]) -> int:
    """The exit code of `command`: its own, or the one its exception stands for, after one sentence on stderr.

    2: bad input (``ValueError``, a path that cannot be used); 1: a failure (``RuntimeError`` and
    ``FloatingPointError`` with their sentence, anything unforeseen with its traceback); 143: SIGTERM; 130: Ctrl-C;
    141: whoever read the output has gone. With ``XFER_DEBUG=1`` every exception shows its traceback.
    """
    try:
        return command()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED
    except Terminated:
        return _end(prog, "stopped by SIGTERM", TERMINATED)
    except KeyboardInterrupt:
        return _end(prog, "stopped", INTERRUPTED)
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = BAD_INPUT if isinstance(error, _PATH_ERRORS) else FAILED
        full = "; free some space and start the same command again" if error.errno == errno.ENOSPC else ""
        return _end(prog, f"{where}{error.strerror or error}{full}", code)
    except MemoryError:
        return _end(prog, "out of memory; smaller batches (--batch_size) need less", FAILED)
    except Exception as error:
        stopped = getattr(error, "exit_code", None)  # a training ended by a signal, after its checkpoint
        if isinstance(stopped, int):
            return _end(prog, str(error), stopped)
        if isinstance(error, ValueError):
            cause = error.__cause__
            broken = isinstance(cause, OSError) and not isinstance(cause, _PATH_ERRORS)
            return _end(prog, str(error), FAILED if broken else BAD_INPUT)
        details = getattr(error, "details", "")
        if details:
            print(details, end="", file=sys.stderr)
        if isinstance(error, (RuntimeError, ArithmeticError, ImportError)):
            return _end(prog, str(error) or type(error).__name__, FAILED)
        traceback.print_exc()
        return _end(prog, f"unforeseen {type(error).__name__}: {error}", FAILED)


def _end(prog: str, sentence: str, code: int) -> int:
    if os.environ.get("XFER_DEBUG") == "1" and code in (FAILED, BAD_INPUT):
        traceback.print_exc()
    print(f"{prog}: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
    return code
