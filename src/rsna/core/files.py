"""Atomic writing of files, JSON, and content hashes."""

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

ABSENT = "absent"  # stands for the hash of a file that does not exist
MARKED_BYTES = 2**14  # a file's mark must be within this many bytes from its start
MAX_JSON_BYTES = 2**28  # far more than any manifest; reading a sparse file of terabytes would take all memory


@contextlib.contextmanager
def write_then_rename(path: Path, durable: bool = True, mark: bytes = b"") -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block succeeds.

    If the process is killed in the block, `path` is unchanged. The temporary name is always the same, so the next
    attempt replaces the leftover; a second process waits for the first. durable: flush to disk before renaming. mark:
    bytes that such a file has near its start. Raises UserError if `path` exists without them: it is somebody else's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") if mark and path.is_file() else io.BytesIO(mark) as file:
        if mark not in file.read(MARKED_BYTES):
            raise UserError(f"{path}: a file that this program did not write is in the way; move it elsewhere")
    name = os.fsencode(path.name)  # a name of 255 bytes, the maximum, has no room for the prefix and suffix
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
    """Write a text file in UTF-8; what UTF-8 cannot encode, such as a byte of a file name, is written as `\\udce9`."""
    with write_then_rename(path, mark=mark) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name to an OSError in the block: an error of `write`, such as for a full disk, has none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_json(content: dict[str, Any], path: Path) -> None:
    write_text(json.dumps(content, indent=2) + "\n", path)


def read_json(path: Path, rebuild: str = "", expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object with at least the keys of `expected`, in these forms: see fits. Raises UserError.

    rebuild: the command that makes the file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file" + (f"; run: {rebuild}" if rebuild else ""))
    remedy = f"delete it and run: {rebuild}" if rebuild else "delete it and run its command again"
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UserError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes; {remedy}")
    try:
        content = json.loads(path.read_text(), parse_constant=float)
    except (ValueError, RecursionError) as error:  # ValueError: invalid JSON or UTF-8, or a number of too many digits
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; {remedy}")
    for key, form in (expected or {}).items():
        if not fits(content, {key: form}):
            raise UserError(f"{path}: '{key}' is missing or not valid; {remedy}")
    return content


def fits(value: Any, form: Any) -> bool:
    """Whether a JSON value has a form: a type, or a dict or list of forms; a list of one form allows any length.

    Numbers must be finite; NaN is allowed where None is. A dict may have more keys than its form.
    """
    if isinstance(form, dict):
        return isinstance(value, dict) and all(key in value and fits(value[key], part) for key, part in form.items())
    if isinstance(form, list):
        forms = form * len(value) if isinstance(value, list) and len(form) == 1 else form
        return isinstance(value, list) and len(value) == len(forms) and all(map(fits, value, forms))
    if isinstance(value, float) and not math.isfinite(value):
        return isinstance(value, form) and math.isnan(value) and isinstance(None, form)
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) > 2**53):
        return False
    return isinstance(value, form)


def bytes_hash(content: bytes) -> str:
    """The first 16 hex digits of the SHA-256, the same as content_hash of a file with these bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def content_hash(path: Path) -> str:
    """The first 16 hex digits of the SHA-256 of a file's bytes; ABSENT if it does not exist."""
    if not path.is_file():
        return ABSENT
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
