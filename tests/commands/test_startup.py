"""Starting a command: missing packages, python -m, any current directory, Ctrl-C during imports."""

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
    """A Python without any packages."""
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
def test_a_python_without_the_packages_shows_the_command_to_run(workspace, bare_python, command):
    done = run(bare_python, workspace / "src" / f"{command}.py", "fold=0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"run: {workspace / 'run.sh'} {command} ..." in done.stderr
    assert "torch" in done.stderr


def test_it_restarts_in_an_existing_venv(workspace, bare_python):
    put_venv(workspace, sys.executable)
    done = run(bare_python, workspace / "src" / "summary.py", "sizee=3")
    assert (done.returncode, done.stderr) == (2, "error: sizee=3: there is no setting 'sizee'; did you mean size?\n")


def test_a_venv_without_the_packages_causes_no_endless_loop(workspace, bare_python):
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


def test_a_reader_that_closes_the_output_early():
    done = run("bash", "-c", f"'{sys.executable}' '{ROOT}/src/summary.py' help all | head -1")
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_an_ascii_terminal_gets_escaped_text_without_control_characters():
    code = r"import rsna.startup as s; print('\xb1', 'a\tb', '\x1b[31m', '\x9b', '\udce9'); s.sys.exit('\x1b]0;\xb1')"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert done.stdout == b"\\xb1 a\tb \\x1b[31m \\x9b \\udce9\n"
    assert done.stderr == b"\\x1b]0;\\xb1\n"


def test_a_setting_with_escape_sequences_reaches_no_terminal():
    done = run(sys.executable, ROOT / "src" / "summary.py", "name=\x1b[2J")
    assert (done.returncode, "\x1b" in done.stderr) == (2, False)
    assert "name=\\x1b[2J: " in done.stderr


def test_run_sh_imports_nothing_from_the_folder_that_it_is_started_in(workspace, bare_python, tmp_path):
    """Neither in a Python without the packages, nor in the .venv that it would install them into."""
    shutil.copy(ROOT / "run.sh", workspace)
    (workspace / "requirements.txt").write_text("no-such-package\n")
    for path in (tmp_path / "bin" / "python3.11", workspace / ".venv" / "bin" / "python"):
        path.parent.mkdir(parents=True)
        # there is no pip, and nothing that it would install is needed
        path.write_text(f'#!/bin/sh\n"{bare_python}" "$@" || case "$*" in *pip*) ;; *) exit 1;; esac\n')
        path.chmod(0o755)
    (tmp_path / "here").mkdir()
    for name in ("re", "email", "ensurepip", "venv", "pip", "rsna"):
        (tmp_path / "here" / f"{name}.py").write_text("open('executed', 'a').write(__name__)\n")
    words = ["env", f"PATH={tmp_path / 'bin'}:{os.environ['PATH']}", workspace / "run.sh", "summary", "fold=0"]
    assert "installing" in run(*words, cwd=tmp_path / "here").stderr
    assert not (tmp_path / "here" / "executed").exists()


def test_run_sh_with_pythonsafepath():
    words = ["env", "PYTHONSAFEPATH=1", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"]
    done = run(*words, ROOT / "run.sh", "make_folds", "fold=x")
    assert "fold=x: write all, 3, 0,2 or 0..4" in done.stderr


@pytest.mark.parametrize(("command", "module"), [("report", "rsna.startup"), ("cache_images", "rsna.data.cache")])
def test_ctrl_c_while_packages_are_imported(command, module):
    # Python reports each module after its import; startup is among the first
    words = [sys.executable, "-X", "importtime", str(ROOT / "src" / f"{command}.py"), "root=/nonexistent-workspace"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not process.stderr.readline().endswith(f"{module}\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, output = process.communicate()
    assert "Traceback" not in output
    assert [line for line in output.splitlines() if not line.startswith("import time:")] == ["stopped"]
    assert process.returncode == 130


SLOW_IMPORT = """
import signal, time
from rsna.core.command_line import parse
from rsna.core.errors import end_with_one_line
from rsna.execution.folds import run_folds

def work(cfg, fold):
    time.sleep(60)

if __name__ == "__main__":
    end_with_one_line()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as commands do; in a background job it is ignored
    run_folds(work, [(parse([]), 0)])
else:
    print("importing", flush=True)
    time.sleep(0.5)
"""


def test_ctrl_c_while_the_process_of_a_fold_imports(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_IMPORT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    words = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, tmp_path / "slow.py"], start_new_session=True, **words)
    assert process.stdout.readline() == "importing\n"
    os.killpg(process.pid, signal.SIGINT)
    _, output = process.communicate()
    assert output.splitlines() == ["stopped; what was finished is kept, and the same command resumes from there"]
