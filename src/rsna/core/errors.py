"""Errors that a person can fix, and how a command ends with one line instead of a traceback."""

import errno
import sys
from types import TracebackType


class UserError(Exception):
    """Something that the person at the keyboard can mend: says what, in which file and row, and how."""


def end_with_one_line() -> None:
    """Let a UserError or Ctrl-C end the process with one line and a non-zero status instead of a traceback."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        line = explanation(error)
        if line:
            print(line, file=sys.stderr, flush=True)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def explanation(error: BaseException) -> str:
    """One line for what a person can mend; empty for what is a bug."""
    if isinstance(error, UserError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "stopped; what was finished is kept, the same command goes on from there"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"error: {error.strerror}: {error.filename}; make room: what was finished is kept, the same command goes on"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"error: {error.strerror}: {error.filename or 'no file named'}"
    return ""
