"""What every command does first: check packages, handle Ctrl-C, read the settings. Needs only the standard library.

A command imports this before anything else. It is the only module that runs code on import, because that must happen
before any package is imported.
"""

import importlib.util
import io
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

WORKSPACE = Path(__file__).resolve().parents[2]
# the modules of the packages that commands import; requirements.txt says what each package is for
PACKAGES = (
    *("torch", "torchvision", "segmentation_models_pytorch", "safetensors", "pydicom", "gdcm", "PIL", "cv2"),
    *("sklearn", "iterstrat", "pandas", "numpy", "omegaconf", "tqdm", "matplotlib", "jinja2"),
)
RESTARTED = "RSNA_RESTARTED_IN_VENV"  # environment variable that prevents a loop if .venv lacks packages too


CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\r\t"}


def make_printable() -> None:
    """Make print escape, as `\\x1b`, characters that the terminal cannot show or that would control it."""
    for stream in (sys.stdout, sys.stderr):
        if type(stream) is io.TextIOWrapper:  # not the stream of a notebook or a test
            stream.reconfigure(errors="backslashreplace")
            stream.write = partial(write_printable, stream.write)  # type: ignore[method-assign]


def write_printable(write: Callable[[str], int], text: str) -> int:
    return write(text.translate(CONTROLS))


def check_packages() -> None:
    """If a package is missing, restart with .venv's Python if there is one, else end with a one-line error."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return
    python = WORKSPACE / ".venv" / "bin" / "python"
    if python.is_file() and not os.environ.get(RESTARTED):
        os.environ[RESTARTED] = "1"
        os.execv(python, [str(python), *sys.orig_argv[1:]])
    print(
        f"error: this Python ({sys.executable}) lacks {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}; "
        f"run: {WORKSPACE / 'run.sh'} {Path(sys.argv[0]).stem} ..., which installs what is needed into .venv",
        file=sys.stderr,
    )
    raise SystemExit(2)


def stop_in_one_line(_: int, __: FrameType | None) -> None:
    """Handle Ctrl-C while packages are still being imported."""
    print("stopped", file=sys.stderr)
    os._exit(130)


def run(main: Callable[[Any], None]) -> None:
    """Read the settings from the command line and call a command's main with them.

    `help` and `help all` print the settings and exit with status 0; a wrong setting gives one line and status 2.
    """
    from rsna.core.command_line import help_text, parse
    from rsna.core.errors import UserError
    from rsna.models.registry import check_name, names, settings_of

    words = sys.argv[1:]
    if {word.lstrip("-") for word in words} & {"help", "h"}:
        print(help_text({name: settings_of(name) for name in names()} if "all" in words else None))
        return
    try:
        cfg = parse(words, settings_of)
        check_name(cfg.model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the imports are complete
    main(cfg)


make_printable()
if "--multiprocessing-fork" not in sys.orig_argv:  # the child processes of a command import this module too
    from rsna.core.errors import end_with_one_line

    end_with_one_line()
    signal.signal(signal.SIGINT, stop_in_one_line)
    check_packages()
