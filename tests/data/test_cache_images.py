"""The image cache: what it writes, what it skips, and what it survives."""

import csv
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from helpers.dicom_files import radiograph, write_dicom
from pydicom import uid

from rsna.core import sources
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.files import content_hash
from rsna.core.sources import hash_of
from rsna.data import cache
from rsna.data.cache import (
    INDEX_COLUMNS,
    INDEX_CSV,
    JOURNAL_CSV,
    SEEN_CSV,
    hash_pair,
    read_index,
    read_rows,
    report,
    update_cache,
)
from rsna.data.competition import TEST_IMAGES, TRAIN_IMAGES
from rsna.data.dicom import parse_dicom, read_headers, time_limit
from rsna.data.letterbox import read_png
from rsna.execution.processes import map_files

SRC = Path(__file__).resolve().parents[2] / "src"
SCRIPT = SRC / "cache_images.py"
SIZE = 32


@pytest.fixture
def root(tmp_path):
    """A workspace with 6 training and 3 test images."""
    make_input(tmp_path / "input")
    return tmp_path


def make_input(folder, seed=0):
    for split, count in ((TRAIN_IMAGES, 6), (TEST_IMAGES, 3)):
        (folder / split).mkdir(parents=True)
        for k in range(count):
            image = radiograph(64, 40 + 8 * k, seed + k)
            syntax = uid.JPEGBaseline8Bit if k % 2 else uid.ExplicitVRLittleEndian
            write_dicom(folder / split / f"{split[8:13]}{k}.dcm", image, syntax)
    return folder


def run(root, capsys, *words):
    """Run the command in this process; returns (written, current, refused) and all that it printed."""
    cfg = parse([f"root={root}", f"size={SIZE}", "workers=0", *words])
    report(cfg, *update_cache(cfg))
    printed = capsys.readouterr().out
    last = printed.splitlines()[-1]
    if found := re.match(r"cache_images: (\d+) images current -> ", last):
        return (0, int(found[1]), 0), printed
    counts = re.match(r"cache_images: (\d+) images written, (\d+) current, (\d+) refused -> ", last)
    return tuple(map(int, counts.groups())), printed


def command(root, *words):
    return [sys.executable, str(SCRIPT), f"root={root}", f"size={SIZE}", *words]


def shell(root, *words):
    return subprocess.run(command(root, *words), capture_output=True, text=True, timeout=60)


def cache_of(root):
    return root / "working" / f"png_{SIZE}"


def contents(folder):
    """Bytes of every file below a folder, but for what differs between copies."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SEEN_CSV]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def source(root, patient="train0", split=TRAIN_IMAGES):
    return root / "input" / split / f"{patient}.dcm"


# what it writes


def test_every_image_is_a_png_and_a_row(root, capsys):
    counts, printed = run(root, capsys)
    assert counts == (9, 0, 0)
    assert str(cache_of(root) / INDEX_CSV) in printed
    index = read_index(cache_of(root), SIZE)
    assert list(index) == INDEX_COLUMNS
    assert list(index["patientId"]) == [f"train{k}" for k in range(6)] + [f"test_{k}" for k in range(3)]
    assert list(index["split"]) == ["train"] * 6 + ["test"] * 3
    assert (index["status"] == "ok").all()
    assert index["reason"].isna().all()
    row = index.iloc[1]
    assert (row["rows"], row["cols"], row["transfer_syntax"]) == (64, 48, "JPEG Baseline (Process 1)")
    assert (row["scale_x"], row["scale_y"], row["pad_x"], row["pad_y"]) == (0.5, 0.5, 4, 0)
    for row in index.itertuples():
        assert read_png(cache_of(root) / row.split / f"{row.patientId}.png", SIZE).shape == (SIZE, SIZE)
    assert not (cache_of(root) / JOURNAL_CSV).exists()


def test_file_names_are_ids_whatever_the_header_says(root, capsys):
    write_dicom(source(root, "007"), radiograph(64, 64), PatientID="../../escaped")
    run(root, capsys)
    assert "007" in set(read_index(cache_of(root), SIZE)["patientId"])
    assert not list(root.rglob("escaped*"))


def test_processes_do_not_change_the_bytes(root):
    for workers in (0, 2):
        result = shell(root, f"working={root / f'working{workers}'}", f"workers={workers}")
        assert result.returncode == 0, result.stderr
    assert contents(root / "working0") == contents(root / "working2")


# what it skips


def test_a_second_run_does_nothing(root, capsys):
    run(root, capsys)
    before = contents(cache_of(root))
    times = {path: path.stat().st_mtime_ns for path in cache_of(root).rglob("*.png")}
    assert run(root, capsys)[0] == (0, 9, 0)
    assert contents(cache_of(root)) == before
    assert {path: path.stat().st_mtime_ns for path in cache_of(root).rglob("*.png")} == times


def test_only_files_that_were_written_since_are_read_again(root, capsys, monkeypatch):
    monkeypatch.setattr(sources, "RECENT_NS", 0)
    run(root, capsys)
    read = []
    monkeypatch.setattr(
        cache, "hash_pair", lambda path, cache_dir: read.append(path.stem) or hash_pair(path, cache_dir)
    )
    assert run(root, capsys)[0] == (0, 9, 0)
    assert read == []
    (cache_of(root) / "train" / "train2.png").touch()
    source(root, "train4").touch()
    assert run(root, capsys)[0] == (0, 9, 0)
    assert read == ["train2", "train4"]
    assert run(root, capsys)[0] == (0, 9, 0)
    assert len(read) == 2


def test_files_of_the_last_seconds_are_read_again(root, capsys, monkeypatch):
    """A change within one tick of the file system's clock leaves the times as they were."""
    run(root, capsys)
    monkeypatch.setattr(cache, "hash_pair", lambda path, cache_dir: ("", ""))
    assert run(root, capsys)[0] == (9, 0, 0)


def test_an_index_put_back_from_a_copy_is_compared_with_the_files(root, capsys, monkeypatch):
    monkeypatch.setattr(sources, "RECENT_NS", 0)
    run(root, capsys)
    old = (cache_of(root) / INDEX_CSV).read_bytes()
    write_dicom(source(root), radiograph(64, 40, 7))
    assert run(root, capsys)[0] == (1, 8, 0)
    (cache_of(root) / INDEX_CSV).write_bytes(old)
    assert run(root, capsys)[0] == (1, 8, 0)


def test_a_touched_cache_is_current(root, capsys):
    run(root, capsys)
    for path in root.rglob("*"):
        os.utime(path, ns=(1, 1))
    before = contents(cache_of(root))
    assert run(root, capsys)[0] == (0, 9, 0)
    assert contents(cache_of(root)) == before


def test_a_source_or_png_replaced_with_equal_size_and_time_is_noticed(root, capsys):
    run(root, capsys)
    before = contents(cache_of(root))
    png = cache_of(root) / "train" / "train2.png"
    for path in (source(root), png):
        stat, content = path.stat(), bytearray(path.read_bytes())
        content[-20] ^= 1  # a pixel of the DICOM, a compressed byte of the PNG
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
    assert run(root, capsys)[0] == (2, 7, 0)
    assert png.read_bytes() == before["train/train2.png"]
    assert contents(cache_of(root))["index.csv"] != before["index.csv"]


def test_changed_sources_are_made_again(root, capsys):
    run(root, capsys)
    write_dicom(source(root), radiograph(64, 40, 7))
    assert run(root, capsys)[0] == (1, 8, 0)
    expected = np.abs(read_png(cache_of(root) / "train" / "train0.png", SIZE)[:, 6:26].astype(int) - 128).mean()
    assert expected > 10
    assert run(root, capsys)[0] == (0, 9, 0)


def test_lost_and_cut_off_pngs_are_made_again(root, capsys):
    run(root, capsys)
    before = contents(cache_of(root))
    (cache_of(root) / "train" / "train0.png").unlink()
    # what a power cut can leave
    (cache_of(root) / "test" / "test_1.png").write_bytes(b"")
    assert run(root, capsys)[0] == (2, 7, 0)
    assert contents(cache_of(root)) == before


def test_sources_that_are_gone_leave_the_index(root, capsys):
    run(root, capsys)
    source(root).unlink()
    assert run(root, capsys)[0] == (0, 8, 0)
    assert "train0" not in set(read_index(cache_of(root), SIZE)["patientId"])


def test_another_input_with_the_same_names_sizes_and_times(root, capsys):
    other = make_input(root / "other", seed=5)
    for path in [*(root / "input").rglob("*.dcm"), *other.rglob("*.dcm")]:
        os.utime(path, ns=(10**18, 10**18))
    same_size = source(root).stat().st_size == (other / TRAIN_IMAGES / "train0.dcm").stat().st_size
    assert same_size
    run(root, capsys)
    first = contents(cache_of(root))
    assert run(root, capsys, f"input={other}")[0] == (9, 0, 0)
    second = contents(cache_of(root))
    assert all(first[name] != second[name] for name in first if name.endswith(".png"))
    assert run(root, capsys)[0] == (9, 0, 0)
    assert contents(cache_of(root)) == first


def test_a_workspace_that_is_moved_keeps_its_cache(root, capsys):
    run(root, capsys)
    before = contents(cache_of(root))
    moved = root.rename(root.with_name(f"moved {root.name}"))
    assert run(moved, capsys)[0] == (0, 9, 0)
    assert contents(cache_of(moved)) == before


@pytest.mark.parametrize("linked", [False, True])
def test_so_does_one_whose_input_stays_where_it_is(root, capsys, linked):
    outside = (root / "input").rename(root.with_name(f"disk of {root.name}"))
    if linked:
        (root / "input").symlink_to(outside)
    words = [] if linked else [f"input={outside}"]
    run(root, capsys, *words)
    deeper = root.with_name(f"deeper {root.name}")
    deeper.mkdir()
    moved = root.rename(deeper / "workspace")
    assert run(moved, capsys, *words)[0] == (0, 9, 0)


def test_index_of_another_version_is_not_trusted(root, capsys, monkeypatch):
    run(root, capsys)
    monkeypatch.setattr(cache, "VERSION", 0)
    assert run(root, capsys)[0] == (9, 0, 0)
    (cache_of(root) / INDEX_CSV).write_text("patientId,status\ntrain0,ok\n")
    assert run(root, capsys)[0] == (9, 0, 0)


# what it survives


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_it_resumes_from_the_journal(root, capsys, cut):
    """A killed run leaves a journal, its last line perhaps cut off, and no index."""
    run(root, capsys)
    before = contents(cache_of(root))
    lines = before[INDEX_CSV].splitlines(keepends=True)[:6]
    (cache_of(root) / INDEX_CSV).unlink()
    written = b"".join(lines)
    (cache_of(root) / JOURNAL_CSV).write_bytes(written[: len(written) - cut])
    with pytest.raises(UserError, match="unfinished"):
        read_index(cache_of(root), SIZE)
    kept = 5 if cut == 0 else 4
    assert run(root, capsys)[0] == (9 - kept, kept, 0)
    assert contents(cache_of(root)) == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=str)
def test_stopped_and_started_again(root, number):
    """A real run, stopped midway: no process is left, nothing finished is lost, the result is as undisturbed."""
    for k in range(300):
        shutil.copy(source(root, "train1"), source(root, f"copy{k:03d}"))
    # a session of its own, so that its processes can be counted, and so that Ctrl-C reaches all, as from a terminal
    process = subprocess.Popen(
        command(root, "workers=2"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell's background jobs, and so the tests in one, begin with SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = cache_of(root) / JOURNAL_CSV
    deadline = time.monotonic() + 30
    while len(read_rows(journal)) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    errors = process.communicate(timeout=30)[1]
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert_no_process_left(process.pid)
    done = len(read_rows(journal))
    assert 20 <= done < 309
    again = shell(root, "workers=2")
    assert f"{309 - done} images written, {done} current, 0 refused" in again.stdout
    update_cache(parse([f"root={root}", f"working={root / 'fresh'}", f"size={SIZE}", "workers=0"]))
    assert contents(cache_of(root)) == contents(root / "fresh" / f"png_{SIZE}")


def assert_no_process_left(group):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("worker processes outlive their parent")


def test_two_at_a_time(root):
    """The second waits for the first and finds all current."""
    both = [subprocess.Popen(command(root), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = sorted(process.communicate(timeout=60)[0].splitlines()[-1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert printed[0].startswith("cache_images: 9 images current")
    assert printed[1].startswith("cache_images: 9 images written, 0 current")


def test_an_image_is_not_refused_because_the_process_was_paused_for_longer_than_the_limit(root, monkeypatch):
    def pause_and_decode(*words, decode=cache.decode_square):
        os.kill(os.getpid(), signal.SIGSTOP)
        return decode(*words)

    monkeypatch.setattr(cache, "decode_square", pause_and_decode)
    source = root / "input" / TRAIN_IMAGES / "train0.dcm"
    child = os.fork()
    if child == 0:
        os._exit(cache.cache_image(source, root, SIZE, seconds=0.3)["status"] != "ok")
    os.waitpid(child, os.WUNTRACED)
    time.sleep(1)  # longer than the second limit, too
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_decoder_that_lets_no_exception_through_ends_its_process():
    child = os.fork()
    if child == 0:
        with time_limit(0.1):
            sum(itertools.repeat(1))  # one call into C that never returns
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGVTALRM


# what is refused


def test_bad_files_are_rows_with_a_reason(root, capsys):
    for k in range(40):
        shutil.copy(source(root), source(root, f"copy{k}"))
    source(root, "text").write_text("<html>not found</html>")
    source(root, "two words,\n").write_bytes(source(root).read_bytes())
    counts, printed = run(root, capsys)
    assert counts == (49, 0, 2)
    assert "refused train/text.dcm: not a DICOM file: DICM" in printed
    index = read_index(cache_of(root), SIZE).set_index("patientId")
    assert index.loc["text", "status"] == "refused"
    assert "DICM" in index.loc["text", "reason"]
    assert np.isnan(index.loc["text", "scale_x"])
    assert list(index.index[index["status"] == "refused"]) == ["text", "two%20words%2C%0A"]
    assert "letters" in index.loc["two%20words%2C%0A", "reason"]
    # the refused ones are tried again: perhaps a decoder was installed
    assert run(root, capsys)[0] == (0, 49, 2)


def test_others_may_read_the_index_while_refused_images_are_tried_again(root, capsys, monkeypatch):
    for k in range(40):
        shutil.copy(source(root), source(root, f"copy{k}"))
    source(root, "text").write_text("<html>not found</html>")
    run(root, capsys)
    seen = []

    def look(content):
        try:
            seen.append(len(read_index(cache_of(root), SIZE)))
        except UserError as error:
            seen.append(str(error).split(";")[0])
        return parse_dicom(content)

    monkeypatch.setattr(cache.dicom, "parse_dicom", look)
    assert run(root, capsys)[0] == (0, 49, 1)
    assert seen == [50]
    source(root).write_bytes(source(root, "train1").read_bytes())
    run(root, capsys)
    assert seen[1:] == [f"{cache_of(root)}: the image cache is unfinished"] * 2  # of a changed image it is not true


def test_names_of_files_that_are_not_utf_8_or_as_long_as_names_can_be(root, capsys):
    names = ["x" * 251, "ö" * 125, "caf\udce8", "caf\udce9", "\x1b[31m"]
    for name in names:
        shutil.copy(source(root), source(root, name))
    for k in range(60):
        shutil.copy(source(root), source(root, f"copy{k}"))
    assert run(root, capsys)[0] == (71, 0, 3)
    index = read_index(cache_of(root), SIZE).set_index("patientId")
    assert index.loc[names[:2], "status"].tolist() == ["ok", "ok"]
    assert index.index[index["status"] == "refused"].tolist() == ["%1B%5B31m", "caf%E8", "caf%E9"]
    headers = read_headers(parse([f"root={root}", "workers=0"]))
    assert {"train0", *names[:2], "caf\udce9"} <= set(headers["patientId"])


def test_a_source_that_was_damaged_and_replaced(root, capsys):
    for k in range(40):
        shutil.copy(source(root), source(root, f"copy{k}"))
    run(root, capsys)
    good = source(root).read_bytes()
    source(root).write_bytes(good[:500])
    assert run(root, capsys)[0] == (0, 48, 1)
    assert not (cache_of(root) / "train" / "train0.png").exists()
    source(root).write_bytes(good)
    assert run(root, capsys)[0] == (1, 48, 0)


def test_too_many_refused_is_an_error_after_all_is_written(root):
    source(root).write_text("not found")
    result = shell(root)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith("cache_images: 8 images written, 0 current, 1 refused")
    assert "1 of 9 images (11%) were refused" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(read_index(cache_of(root), SIZE)) == 9


def test_command_line(root):
    result = shell(root)
    assert result.returncode == 0
    index = cache_of(root) / INDEX_CSV
    assert result.stdout == f"cache_images: 9 images written, 0 current, 0 refused -> {index}\n"
    assert result.stderr == ""  # no progress bar where there is no terminal
    result = shell(root)
    assert (result.stdout, result.stderr) == (f"cache_images: 9 images current -> {index}\n", "")


def test_missing_input_says_how_to_get_it(root, capsys):
    for path in (root / "input" / TEST_IMAGES).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"stage_2_test_images: no \.dcm file in it; unzip Kaggle's files"):
        run(root, capsys)
    (root / "input" / TEST_IMAGES).rmdir()
    with pytest.raises(UserError, match=r"stage_2_test_images: no such folder; unzip Kaggle's files"):
        run(root, capsys)
    assert not (root / "working").exists()


def test_what_macos_leaves_is_no_image(root, capsys):
    source(root, "._train0").write_bytes(b"\0\5\x16\7")
    assert run(root, capsys)[0] == (9, 0, 0)


def test_a_png_that_cannot_be_written_ends_the_run_with_its_name(root, capsys):
    (cache_of(root) / "train" / "train3.png").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match=r"train3\.png"):
        run(root, capsys)
    result = shell(root, "workers=2")
    assert result.returncode == 1
    assert re.search(r"error: Is a directory: .*train3\.png", result.stderr)


def name_or_die(path):
    if path.stem.startswith("deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    return path.stem


def died(path):
    return f"{path.stem} died"


def test_a_file_that_kills_its_process_costs_only_itself():
    """GDCM does that on some damaged streams."""
    names = [f"deadly{k}" if k in (3, 50, 51, 199) else f"n{k}" for k in range(200)]
    results = list(map_files(name_or_die, [Path(f"{name}.dcm") for name in names], parse(["workers=2"]), "test", died))
    assert sorted(results) == sorted(f"{name} died" if name.startswith("deadly") else name for name in names)
    with pytest.raises(BrokenProcessPool, match=r"worked on deadly3\.dcm died"):
        list(map_files(name_or_die, [Path(f"{name}.dcm") for name in names], parse(["workers=2"]), "test"))


@pytest.mark.parametrize("workers", [0, 1, 2, -1])
def test_results_come_in_the_order_of_the_files(workers):
    names, cfg = [f"n{k}" for k in range(100)], parse([f"workers={workers}"])
    assert list(map_files(name_or_die, [Path(f"{name}.dcm") for name in names], cfg, "test")) == names
    assert list(map_files(name_or_die, [], cfg, "test")) == []


def test_opencv_threads_of_the_parent_do_not_block_the_workers():
    """In a process of its own, since it would hang for ever, after this prelude about every second time."""
    code = (
        "import cv2, numpy, os, pathlib\n"
        "from rsna.core.command_line import parse\n"
        "from rsna.execution.processes import map_files\n"
        "for threads in (2, 1, 2):\n"
        "    cv2.setNumThreads(threads)\n"
        "    cv2.GaussianBlur(numpy.zeros((4000, 4000), numpy.uint8), (0, 0), 5)\n"
        "for _ in range(5):\n"
        "    print(len(list(map_files(os.fspath, [pathlib.Path('a')] * 50, parse(['workers=2']), 'test'))))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True, timeout=30)
    assert result.stdout == "50\n" * 5, result.stderr


def test_rows_of_a_journal_hold_what_was_written(tmp_path):
    row = dict.fromkeys(INDEX_COLUMNS, "x") | {"reason": 'a, "quoted" reason'}
    with (tmp_path / JOURNAL_CSV).open("w", newline="") as file:
        writer = csv.DictWriter(file, INDEX_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
        file.write("train7,train,64")
    assert read_rows(tmp_path / JOURNAL_CSV).to_dict("records") == [row | {"seen": ""}]
    assert read_rows(tmp_path / "absent.csv").empty


def test_an_index_of_an_earlier_version_says_what_to_run(tmp_path):
    (tmp_path / INDEX_CSV).write_text("patientId,split,status,source_bytes\na,train,ok,1\n")
    with pytest.raises(UserError, match=r"index\.csv: not of this version; run: \./run\.sh cache_images"):
        read_index(tmp_path, SIZE)


def test_the_index_and_journal_hold_no_path_and_no_time(root, capsys):
    run(root, capsys)
    assert str(root).encode() not in contents(cache_of(root))[INDEX_CSV]
    row = read_rows(cache_of(root) / INDEX_CSV).iloc[0]
    assert row["source_hash"] == content_hash(source(root))
    assert row["png_hash"] == content_hash(cache_of(root) / "train" / "train0.png")


def test_the_index_tells_training_which_images_changed(root, capsys):
    run(root, capsys)
    index = cache_of(root) / INDEX_CSV
    before = [hash_of(Path(f"{index}#{split}")) for split in ("train", "test")]
    write_dicom(source(root), radiograph(64, 40, 7))
    run(root, capsys)
    after = [hash_of(Path(f"{index}#{split}")) for split in ("train", "test")]
    assert after[0] != before[0]
    assert after[1] == before[1]
