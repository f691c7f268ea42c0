"""Files of a finished run with fields removed, retyped, emptied or nested: every reader ends with one line."""

import json
import random
import shutil

import pytest
from helpers.finished_run import copy_workspace, run_main, settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rsna.core.command_line import parse
from rsna.core.errors import UserError

READERS = ("evaluate", "make_submission", "summary", "report", "compare", "show_history")
ODD = (None, True, -1, 1e308, "x", "", [], [[]], {}, {"a": {"b": []}})


@pytest.fixture(scope="module")
def two_runs(finished, tmp_path_factory):
    """Only to be copied. It has a second run, which compare and report read too."""
    root = tmp_path_factory.mktemp("two") / "workspace"
    copy_workspace(finished, root)
    shutil.copytree(root / "working/first", root / "working/other")
    return root


def places(content, path=()):
    """The path to every field in JSON content, including nested ones."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def damage_json(text, rng):
    content = json.loads(text)
    path = rng.choice(list(places(content)))
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if rng.random() < 0.3:
        del holder[path[-1]]
    else:
        holder[path[-1]] = rng.choice(ODD)
    return json.dumps(content)


def damage_csv(text, rng):
    lines = text.splitlines()
    kind = rng.choice(["empty", "header only", "column", "field", "more fields", "half a line"])
    if kind == "empty":
        return ""
    if kind == "header only":
        return lines[0] + "\n"
    row, rows = rng.randrange(len(lines)), [line.split(",") for line in lines]
    column = rng.randrange(len(rows[0]))
    if kind == "column":
        rows = [fields[:column] + fields[column + 1 :] for fields in rows]
    if kind == "field":
        rows[row][min(column, len(rows[row]) - 1)] = rng.choice(["", "nan", "inf", "1e999", "x", "-1", '"'])
    if kind == "more fields":
        rows[row] = [*rows[row], "1", "2"]
    lines = [",".join(fields) for fields in rows]
    return "\n".join(lines)[: -len(lines[-1]) // 2 if kind == "half a line" else None] + "\n"


@pytest.mark.parametrize("reader", READERS)
@hypothesis_settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_a_damaged_file_ends_in_one_line(two_runs, tmp_path_factory, reader, seed):
    root, rng = tmp_path_factory.mktemp("w") / "w", random.Random(seed)
    copy_workspace(two_runs, root)
    files = [path for path in sorted(root.rglob("*")) if path.suffix in (".json", ".csv")]
    path = rng.choice(files)
    text = path.read_text()
    path.unlink()  # it is linked
    path.write_text((damage_json if path.suffix == ".json" else damage_csv)(text, rng))
    message = f"{root}"
    try:
        run_main(reader, parse(settings(root)))
    except UserError as error:  # any other error would be a traceback
        message = str(error)
    assert "\n" not in message
    assert str(root) in message
    shutil.rmtree(root)
