"""Files are whole or absent; tables and JSON are checked when they are read."""

import pandas as pd
import pytest

from rsna.core.errors import UserError
from rsna.core.files import read_json, write_then_rename
from rsna.core.tables import line_number, read_table, write_table


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with write_then_rename(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tables_return_exactly(tmp_path):
    table = pd.DataFrame({"patientId": ["007", "1e5"], "confidence": [0.1 + 0.2, 1 / 3]})
    write_table(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv", ["patientId"]), table, check_exact=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CSV"),
        (b"a,b\n1,2,3\n1\n1,2,3,4\n", "not a CSV|missing"),
        (b"\xff\xfe\x00", "not a CSV"),
        (b"x,y\n", "patientId is missing; found x, y"),
    ],
)
def test_broken_tables_are_named(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_table(path, ["patientId"])


def test_missing_files_name_their_command(tmp_path):
    with pytest.raises(UserError, match="run: make it"):
        read_table(tmp_path / "t.csv", [], rebuild="make it")
    with pytest.raises(UserError, match="run: make it"):
        read_json(tmp_path / "t.json", rebuild="make it")


def test_broken_json_is_named(tmp_path):
    (tmp_path / "t.json").write_text('{"a": ')
    with pytest.raises(UserError, match="not JSON"):
        read_json(tmp_path / "t.json")


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000, '{"a": "x", "b": 1}', '{"a": NaN, "b": 1}', '{"a": 1}'])
def test_json_without_what_is_expected_is_named(tmp_path, content):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=r"t\.json: .*delete it and run: make it"):
        read_json(tmp_path / "t.json", "make it", {"a": int | float, "b": int})


def test_lines_are_counted_with_the_empty_ones(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n\n1,2\n\n\n3,4\n")
    assert [line_number(tmp_path / "t.csv", row) for row in (0, 1)] == [3, 6]


def test_a_column_that_is_there_twice_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("a,b, a\n1,2,3\n")
    with pytest.raises(UserError, match="column a is there twice"):
        read_table(tmp_path / "t.csv", ["a"])
