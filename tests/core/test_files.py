"""Files are whole or absent; stamps tell what changed."""

import pandas as pd
import pytest
from rsna.core.stamps import check_fused, check_stamp, difference, is_complete, mark_complete

from rsna.core.errors import UserError
from rsna.core.files import content_hash, read_json, write_then_rename
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
    mark_complete(stamp, facts, [output])
    assert is_complete(stamp, facts, [output])
    assert check_stamp(stamp, {"size": 64}, [output], "make it") == {"size": 64, "views": [1, 2], "lr": 0.1}
    with pytest.raises(UserError, match=r"s worked from other settings or files \(size: 64 -> 65\); run: make it"):
        check_stamp(stamp, {"size": 65}, [output], "make it")
    assert not is_complete(stamp, facts | {"size": 65}, [output])
    output.write_text("y")
    assert not is_complete(stamp, facts, [output])
    with pytest.raises(UserError, match=r"out\.csv: not as s wrote it; run: make it"):
        check_stamp(stamp, facts, [output], "make it")


def test_fused_tables_are_those_of_the_predictions_of_now(tmp_path):
    run, folds, valid = tmp_path / "run", tmp_path / "folds.csv", tmp_path / "run" / "fold0" / "valid.csv"
    valid.parent.mkdir(parents=True)
    outputs = [run / f"{name}.csv" for name in ("oof", "oof_plain", "test", "test_by_fold")]
    for path in (*outputs, folds, valid):
        path.write_text(path.name)
    facts = {"runs": "", "run/fold0/valid.csv": content_hash(valid), "folds.csv": content_hash(folds)}
    mark_complete(run / "ensemble.json", facts, outputs)
    check_fused(run, folds, "make it")
    for path, message in ((valid, "older than run/fold0/valid.csv"), (folds, "folds.csv: "), (outputs[2], "test.csv")):
        before = path.read_text()
        path.write_text("other")
        with pytest.raises(UserError, match=message):
            check_fused(run, folds, "make it")
        path.write_text(before)


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
