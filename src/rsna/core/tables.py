"""CSV tables with checked columns; patientId is always text."""

import csv
import io
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from rsna.core.errors import UserError
from rsna.core.files import write_then_rename

# a table is what its bytes are, not what the name of the file says; an id may be NA
PLAIN_CSV: dict[str, Any] = {"encoding": "utf-8-sig", "compression": None, "keep_default_na": False, "na_values": [""]}
MAX_BYTES = 2**31  # a million images take a tenth of it
LARGEST = 2.0**53  # beyond it not every whole number has a float


def as_numbers(fields: pd.DataFrame) -> pd.DataFrame:
    """The same table with float64 columns; NaN for an empty field and for what is no number up to LARGEST."""
    numbers = fields.apply(pd.to_numeric, errors="coerce").astype(float)
    return numbers.where(numbers.abs() <= LARGEST)


def write_table(table: pd.DataFrame, path: Path, mark: bytes = b"") -> None:
    """Write a table as CSV with a header; numbers keep every digit, missing values are empty fields."""
    with write_then_rename(path, mark=mark) as temporary:
        table.to_csv(temporary, index=False, errors="backslashreplace")


def read_table(path: Path, columns: Sequence[str], rebuild: str = "", source: str = "") -> pd.DataFrame:
    """Read a CSV that must have `columns`; patientId stays text. Spaces around names and ids are cut off.

    rebuild, source: the command that makes the file, or how to get it, printed when it is missing. Raises UserError.
    """
    if not path.is_file():
        remedy = f"; run: {rebuild}" if rebuild else f"; {source}" if source else ""
        raise UserError(f"{path}: no such file{remedy}")
    if path.stat().st_size > MAX_BYTES:
        problem = f"larger than {MAX_BYTES:,} bytes, which no table of this competition is"
        raise UserError(f"{path}: {problem}; fetch it again")
    try:
        head: pd.DataFrame = pd.read_csv(path, header=None, nrows=1, dtype=str, **PLAIN_CSV)
        names = head.loc[0].fillna("").str.strip()
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # ids of digits keep their zeros
            ids = {position: str for position, name in enumerate(names) if name == "patientId"}
            rows: pd.DataFrame = pd.read_csv(path, dtype=ids, index_col=False, **PLAIN_CSV)
    except pd.errors.ParserWarning:
        raise UserError(f"{path}: rows have more fields than the header; fix or fetch the file again") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, csv.Error) as error:
        if "out of memory" in str(error):
            raise MemoryError from None
        problem = f"not a CSV table with a header ({str(error).strip()})"
        raise UserError(f"{path}: {problem}; unpack it if it is compressed, else fetch it again") from None
    doubled = names[names.duplicated() & (names != "")]
    if len(doubled):
        raise UserError(f"{path}: column {doubled.iloc[0]} is there twice; remove one")
    table = strip_spaces(rows, path)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        found = ", ".join(map(str, table.columns[:8]))
        raise UserError(f"{path}: column {', '.join(missing)} is missing; found {found}")
    return table


def read_numbers(path: Path, columns: Sequence[str], rebuild: str = "") -> pd.DataFrame:
    """As read_table, and these columns hold numbers or are empty, in one row at least. Raises UserError."""
    table = read_table(path, columns, rebuild)
    numbers = as_numbers(table[list(columns)])
    wrong = [name for name in columns if (numbers[name].isna() & table[name].notna()).any()]
    if wrong or table.empty:
        problem = f"{wrong[0]} is not a number in each row" if wrong else "no rows"
        raise UserError(f"{path}: {problem}; delete it" + (f" and run: {rebuild}" if rebuild else ""))
    return table.assign(**numbers)


def read_text_table(path: Path) -> pd.DataFrame:
    """A CSV with all fields as text, without an unfinished last line; empty if the file is missing or unreadable."""
    if not path.is_file():
        return pd.DataFrame()
    content = path.read_bytes()
    # a line without an end was cut off when its process was killed
    whole = io.BytesIO(content[: content.rfind(b"\n") + 1])
    try:
        return pd.read_csv(whole, dtype=str, na_filter=False, on_bad_lines="skip", encoding_errors="replace")
    except ValueError:  # for example zeros after a power cut
        return pd.DataFrame()


def line_number(path: Path, row: int) -> int:
    """The line of a CSV, from 1, on which row `row` of its table, from 0, begins; empty lines are no rows."""
    starts, end = [], 0
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.reader(file)
        with suppress(csv.Error):  # a field without end, as after a lost quote
            for fields in reader:
                if any(map(str.strip, fields)) or len(fields) > 1:
                    starts.append(end + 1)
                end = reader.line_num
    return starts[min(row + 1, len(starts) - 1)] if starts else 1


def strip_spaces(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table without spaces around names of columns and patientIds; a field of spaces is empty. Says how many."""
    names = [str(column).strip() for column in table.columns]
    changed = sum(name != column for name, column in zip(names, table.columns, strict=True))
    table = table.set_axis(names, axis=1)
    for position, name in enumerate(names):
        column = table.iloc[:, position]
        if column.dtype == object:  # whole numbers beyond 64 bits among them
            column = column.map(str, na_action="ignore")
        if not pd.api.types.is_numeric_dtype(column):
            stripped = column.str.strip()
            cleaned = (stripped if name == "patientId" else column).mask(stripped == "")
            changed += int((cleaned.fillna("") != column.fillna("")).sum())
            table.isetitem(position, cleaned.array)
    if changed:
        print(f"{path}: spaces cut off around {changed} names of columns and fields")
    return table
