"""Files are complete or absent; tables and JSON are checked when they are read."""

import bz2
import contextlib
import errno
import fcntl
import gzip
import lzma
import os
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pandas as pd
import pytest
from helpers.sequence import ROOT

from rsna.core.errors import UserError, explanation
from rsna.core.files import read_json, write_text, write_then_rename
from rsna.core.locks import file_lock
from rsna.core.tables import as_numbers, line_number, read_table, write_table


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


def test_tables_are_read_back_exactly(tmp_path):
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


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".bz2", ".xz", ".zip", ".tar", ".tar.gz", ".zst"])
@pytest.mark.parametrize(
    "compress", [gzip.compress, bz2.compress, lzma.compress, lambda text: gzip.compress(text)[:-9]]
)
def test_a_compressed_table_is_refused_whatever_its_name(tmp_path, suffix, compress):
    path = tmp_path / f"t{suffix}"
    path.write_bytes(compress(b"patientId\n1\n"))
    with pytest.raises(UserError, match=r"not a CSV table .*; unpack it if it is compressed"):
        read_table(path, ["patientId"])


@pytest.mark.parametrize("suffix", [".csv", ".gz", ".zip", ".tar", ".zst"])
def test_an_archive_is_not_a_table_and_a_suffix_does_not_make_it_one(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.csv", "b.csv"):
            archive.writestr(name, "patientId\n1\n")
    with pytest.raises(UserError, match=f"t{suffix}: "):
        read_table(path, ["patientId"])
    path.write_text("patientId\n1\n")
    assert read_table(path, ["patientId"])["patientId"].tolist() == ["1"]


def test_ids_that_look_like_missing_values_are_kept(tmp_path):
    ids = ["NA", "null", "nan", "None", "N/A", "1e5", "007", "inf", "-"]
    write_table(pd.DataFrame({"patientId": ids, "group": ids, "x": 1.5}), tmp_path / "t.csv")
    table = read_table(tmp_path / "t.csv", ["patientId"])
    assert table["patientId"].tolist() == table["group"].tolist() == ids


def test_numbers_are_finite_floats_or_missing():
    fields = ["1", "-2.5", "1e3", "inf", "-inf", "nan", "1e400", "9" * 30, "-" + "9" * 30, "1e19", "1_0", "x", None]
    columns = {"text": fields, "integers": [10**30, *range(12)], "floats": [float("inf"), *range(12)], "few": 3}
    numbers = as_numbers(pd.DataFrame(columns))
    assert set(numbers.dtypes) == {np.dtype(float)}
    assert numbers["text"].dropna().tolist() == [1, -2.5, 1000]
    for name in ("integers", "floats"):
        assert numbers[name].dropna().tolist() == list(range(12))
    assert numbers["few"].tolist() == [3.0] * 13


def test_names_of_files_that_are_not_utf_8_are_written_escaped(tmp_path):
    write_text("caf\udce9 é", tmp_path / "t.txt")
    write_table(pd.DataFrame({"patientId": ["caf\udce9"]}), tmp_path / "t.csv")
    assert (tmp_path / "t.txt").read_bytes() == "caf\\udce9 é".encode()
    assert read_table(tmp_path / "t.csv", ["patientId"])["patientId"].tolist() == [r"caf\udce9"]


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
    (tmp_path / "t.csv").write_text('a,"b\nc"\n  \n1,"2\n\n3"\r\n,\n4,5')
    assert len(read_table(tmp_path / "t.csv", ["a"])) == 3
    assert [line_number(tmp_path / "t.csv", row) for row in (0, 1, 2)] == [4, 7, 8]


def test_a_duplicate_column_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("a,b, a\n1,2,3\n")
    with pytest.raises(UserError, match="column a is there twice"):
        read_table(tmp_path / "t.csv", ["a"])


def write(folder):
    write_text("new", folder / "t.csv")


def lock(folder):
    with file_lock(folder):
        pass


PLANTED = {
    "symbolic link": lambda path, target: path.symlink_to(target),
    "dangling link": lambda path, target: path.symlink_to(target.with_name("absent")),
    "hard link": lambda path, target: path.hardlink_to(target),
    "folder": lambda path, target: path.mkdir(),
    "pipe": lambda path, target: os.mkfifo(path),
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize(("name", "act"), [(".t.csv.tmp", write), (".lock", lock)])
def test_links_and_pipes_under_a_temporary_or_lock_name_are_refused(tmp_path, name, act, kind):
    (tmp_path / "folder").mkdir()
    target = tmp_path / "somebody's file"
    target.write_text("theirs")
    PLANTED[kind](tmp_path / "folder" / name, target)
    with pytest.raises(UserError, match=rf"{name}: .*did not make is in the way; move it elsewhere"):
        act(tmp_path / "folder")
    assert target.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir() if path.name == "absent"] == []
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [name]


def test_somebody_elses_file_is_not_a_lock(tmp_path):
    (tmp_path / ".lock").write_text("notes of mine")
    with pytest.raises(UserError, match=r"\.lock: not a lock of this program"):
        lock(tmp_path)
    assert (tmp_path / ".lock").read_text() == "notes of mine"


def test_files_left_by_a_killed_process_are_reused(tmp_path):
    (tmp_path / ".t.csv.tmp").write_text("half of something longer")
    (tmp_path / ".lock").write_text("process 12")
    write(tmp_path)
    lock(tmp_path)
    assert (tmp_path / "t.csv").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "t.csv"]


def test_a_second_writer_of_the_same_file_waits_for_the_first(tmp_path):
    second = threading.Thread(target=write, args=(tmp_path,))
    with write_then_rename(tmp_path / "t.csv") as temporary:
        temporary.write_text("first")
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert temporary.read_text() == "first"
    second.join()
    assert (tmp_path / "t.csv").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["x" * 251 + ".csv", "ö" * 125 + ".csv"])
def test_the_longest_names_can_be_written(tmp_path, name):
    write_text("new", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", fail)
    monkeypatch.setattr(fcntl, "flock", fail)
    write(tmp_path)
    with pytest.raises(UserError, match=rf"{tmp_path}: its file system has no locks \(.*\).*; move it to a local disk"):
        lock(tmp_path)


def test_a_full_disk_is_blamed_on_the_file_that_is_written(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space") as caught, write_then_rename(tmp_path / "t.csv"):
        raise full
    assert explanation(caught.value).startswith(f"error: No space left on device: {tmp_path / 't.csv'}; make room")
    assert "None" not in explanation(OSError(errno.ENOSPC, "No space left on device"))
    copied = OSError(errno.ENOSPC, "No space left on device", "source.py", None, "bundle/source.py")
    assert "device: bundle/source.py; make room" in explanation(copied)


@contextlib.contextmanager
def held_by_another(folder, seconds):
    """A process that holds the lock of a folder for some seconds, and then ends."""
    code = (
        "import sys, time, pathlib; from rsna.core.locks import file_lock\nwith file_lock(pathlib.Path(sys.argv[1])):\n"
    )
    code += "    print('held', flush=True); time.sleep(float(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(folder), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT / "src")}) as holder:
        assert holder.stdout.readline() == "held\n"
        yield holder
        holder.kill()


def test_a_lock_that_is_released_soon_is_waited_for(tmp_path):
    """Such as the fold of a command that was killed, which may still be writing a file."""
    with held_by_another(tmp_path, 0.5), file_lock(tmp_path, patience=20):
        pass


def test_a_process_that_keeps_the_lock_is_named(tmp_path):
    with held_by_another(tmp_path, 60) as holder, pytest.raises(UserError, match=f"process {holder.pid} is at work"):
        lock(tmp_path)
