"""Files that are whole or absent, JSON, and content hashes."""

import contextlib
import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rsna.core.errors import UserError
from rsna.core.locks import open_alone

ABSENT = "absent"  # the hash of a file that is not there
MARKED_BYTES = 2**14  # of a file, where its mark is
MAX_JSON_BYTES = 2**28  # far more than any manifest; a sparse file of terabytes would take all memory


@contextlib.contextmanager
def write_then_rename(path: Path, durable: bool = True, mark: bytes = b"") -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block ends well.

    A process killed inside the block leaves `path` as it was. The temporary name is always the same, so that what it
    left behind is gone once the stage is repeated; a second process waits for it. durable: wait for the disk.
    mark: what such a file has near its start; raises UserError instead of replacing one without: it is somebody else's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") if mark and path.is_file() else io.BytesIO(mark) as file:
        if mark not in file.read(MARKED_BYTES):
            raise UserError(f"{path}: a file that this program did not write is in the way; move it elsewhere")
    name = os.fsencode(path.name)  # one of 255 bytes, the longest that there is, has no room for more
    temporary = path.with_name(f".{path.name if len(name) < 250 else bytes_hash(name)}.tmp")
    with naming(path), open_alone(temporary) as file:
        try:
            yield temporary
            if durable:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(text: str, path: Path, mark: bytes = b"") -> None:
    """Write a whole file in UTF-8; what that cannot hold, such as a byte of a file name, is written as `\\udce9`."""
    with write_then_rename(path, mark=mark) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error in the block name the file: a write that fails, on a full disk for example, does not know it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(content: dict[str, Any], path: Path) -> None:
    write_text(json.dumps(content, indent=2) + "\n", path)


def read_json(path: Path, rebuild: str = "", expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object with at least the keys of `expected`, their values of these forms, see fits.

    `rebuild` is the command that makes the file. Raises UserError where it is missing or broken.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file" + (f"; run: {rebuild}" if rebuild else ""))
    remedy = f"delete it and run: {rebuild}" if rebuild else "delete it and run its command again"
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes; {remedy}")
    try:
        content = json.loads(path.read_text(), parse_constant=float)
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of a number with thousands of digits
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {remedy}")
    for key, form in (expected or {}).items():
        if not fits(content, {key: form}):
            raise UserError(f"{path}: '{key}' is missing or makes no sense; {remedy}")
    return content


def fits(value: Any, form: Any) -> bool:
    """Whether a value from JSON has a form: a type, or a dict or list of forms; a list of one is for any length.

    Numbers are finite, or NaN where None is allowed too. A dict may have more keys than its form.
    """
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], own) for key, own in form.items())
    if isinstance(form, list):
        forms = form * len(value) if isinstance(value, list) and len(form) == 1 else form
        return isinstance(value, list) and len(value) == len(forms) and all(map(fits, value, forms))
    if isinstance(value, float) and not math.isfinite(value):
        return isinstance(value, form) and math.isnan(value) and isinstance(None, form)
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) > 2**53):
        return False
    return isinstance(value, form)


def bytes_hash(content: bytes) -> str:
    """First 16 hex digits of the SHA-256, as content_hash gives for a file of these bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """First 16 hex digits of the SHA-256 of a file's bytes, or `absent`."""
    if not path.is_file():
        return ABSENT
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
