"""Errors that the user can fix, and how a command ends with one line instead of a traceback."""

import errno
import importlib
import os
import sys
from types import TracebackType
from typing import Any


class UserError(Exception):
    """An error that the user can fix. Its text says what is wrong, in which file and row, and what to do."""


def end_with_one_line() -> None:
    """Make a UserError or Ctrl-C end the process with one line and a non-zero status instead of a traceback."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, BrokenPipeError):
            os._exit(1)  # the reader of the output, such as `head`, has closed it, so nobody would see a message
        if line := explanation(error):
            print(line, file=sys.stderr, flush=True)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def explanation(error: BaseException) -> str:
    """One line about an error that the user can fix; empty for a bug."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "stopped; what was finished is kept, and the same command resumes from there"
    if isinstance(error, MemoryError) or (isinstance(error, ImportError | OSError) and lacks_memory(error)):
        return "error: not enough memory; close other programs, or raise the limit (ulimit -v, the container's)"
    if isinstance(error, OSError) and error.errno is not None:
        # in an error about a copy, filename2 is the file that was written
        line = f"error: {error.strerror}: {error.filename2 or error.filename or 'the output, or a file without a name'}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return line + ("; make room and run the same command: what was finished is kept" if full else "")
    return ""


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an import failed because memory ran out; NumPy only shows this in the cause of its error."""
    if error is None or getattr(error, "errno", None) == errno.ENOMEM:
        return error is not None
    words = ("map segment", "allocate memory", "static TLS block")
    return any(word in str(error) for word in words) or lacks_memory(error.__cause__)


def optional(module: str, requirements: str = "requirements-show.txt") -> Any:
    """Import a module that few commands need. Raises UserError, with the pip command, if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"this needs {module.split('.')[0]}; run: pip install -r {requirements}") from None
