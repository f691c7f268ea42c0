"""Files are whole or absent; stamps tell what changed."""

import pandas as pd
import pytest

from files import (
    UserError,
    difference,
    is_complete,
    mark_complete,
    read_json,
    read_table,
    write_table,
    write_then_rename,
)


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


def test_missing_files_name_their_maker(tmp_path):
    with pytest.raises(UserError, match="run: make it"):
        read_table(tmp_path / "t.csv", [], maker="make it")
    with pytest.raises(UserError, match="run: make it"):
        read_json(tmp_path / "t.json", maker="make it")


def test_broken_json_is_named(tmp_path):
    (tmp_path / "t.json").write_text('{"a": ')
    with pytest.raises(UserError, match="not JSON"):
        read_json(tmp_path / "t.json")


def test_difference_names_what_changed():
    assert difference({"a": 1, "b": 2}, {"a": 1, "b": 2}) == ""
    assert (
        difference({"size": 512, "gone": 1}, {"size": 256, "new": 0})
        == "size: 512 -> 256; new: None -> 0; gone: 1 -> None"
    )


def test_complete_means_same_facts_and_all_outputs(tmp_path):
    stamp, output = tmp_path / "s.json", tmp_path / "out.csv"
    facts = {"size": 64, "views": (1, 2), "lr": 0.1}
    mark_complete(stamp, facts)
    assert not is_complete(stamp, facts, [output])
    output.write_text("x")
    assert is_complete(stamp, facts, [output])
    assert not is_complete(stamp, facts | {"size": 65}, [output])
