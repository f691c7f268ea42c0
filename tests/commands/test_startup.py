"""The first minute: a Python without the packages, python -m, any directory, Ctrl-C while packages are imported."""

import os
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(path.stem for path in (ROOT / "src").glob("*.py") if path.stem != "__init__")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python that has no package."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


@pytest.fixture
def workspace(tmp_path):
    """A copy of the code, without .venv."""
    shutil.copytree(ROOT / "src", tmp_path / "workspace" / "src")
    return tmp_path / "workspace"


def run(*words, cwd=None):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def put_venv(workspace, python):
    """A .venv whose Python is this one."""
    path = workspace / ".venv" / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nexec "{python}" "$@"\n')
    path.chmod(0o755)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_python_without_the_packages_is_told_what_to_type(workspace, bare_python, command):
    done = run(bare_python, workspace / "src" / f"{command}.py", "fold=0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"run: {workspace / 'run.sh'} {command} ..." in done.stderr
    assert "torch" in done.stderr


def test_it_goes_on_in_the_venv_that_is_there(workspace, bare_python):
    put_venv(workspace, sys.executable)
    done = run(bare_python, workspace / "src" / "summary.py", "sizee=3")
    assert (done.returncode, done.stderr) == (2, "error: sizee=3: there is no setting 'sizee'; did you mean size?\n")


def test_a_venv_that_lacks_packages_too_is_no_endless_loop(workspace, bare_python):
    put_venv(workspace, bare_python)
    done = run(bare_python, workspace / "src" / "summary.py")
    assert done.returncode == 2
    assert "run.sh summary" in done.stderr


@pytest.mark.parametrize("words", [["-m", "src.summary"], ["src/summary.py"]])
def test_as_a_module_and_as_a_file(words):
    done = run(sys.executable, *words, "sizee=3", cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "error: sizee=3: there is no setting 'sizee'; did you mean size?\n")


def test_from_any_directory(tmp_path):
    done = run(sys.executable, ROOT / "src" / "summary.py", "help", cwd=tmp_path)
    assert done.returncode == 0
    assert "epochs=12" in done.stdout


def test_output_that_nobody_reads_to_its_end():
    done = run("bash", "-c", f"'{sys.executable}' '{ROOT}/src/summary.py' help all | head -1")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_ctrl_c_while_packages_are_imported():
    # Python reports each module once it is imported, startup among the first
    words = [sys.executable, "-X", "importtime", str(ROOT / "src" / "report.py"), "root=/nonexistent-workspace"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stderr.readline().endswith("rsna.startup\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if not line.startswith("import time:")] == ["stopped"]
    assert process.returncode == 130
