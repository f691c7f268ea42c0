"""Run commands as a user does, without repeating the imports each time.

Importing PyTorch and other packages takes longer than a command's work on a tiny competition. So one process imports
them once and forks for each command, which is still a separate process that runs the script as __main__. What happens
during imports is tested with a new Python process in test_startup.py and test_faults.py.
"""

import atexit
import functools
import gc
import json
import multiprocessing
import os
import pkgutil
import runpy
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

SRC = Path(__file__).resolve().parents[2] / "src"


def run_command(name, *words):
    """Run src/<name>.py with these words; returns the finished process."""
    argv = [str(SRC / f"{name}.py"), *map(str, words)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        server = start_server()
        server.stdin.write(json.dumps({"argv": argv, "out": str(out), "err": str(err)}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(argv, status, out.read_text(), err.read_text())


@functools.cache
def start_server():
    """Start the process that forks; it ends when this process ends, which closes its input."""
    words = [sys.executable, __file__]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def import_all():
    sys.path[0] = str(SRC)  # as Python does for a script in that folder
    rsna = import_module("rsna")
    for module in pkgutil.walk_packages(rsna.__path__, "rsna."):
        import_module(module.name)
    # garbage collection in a child would copy all the memory that it visits
    gc.freeze()


def serve():
    """Fork for each request and answer with the exit status; returns the request in the child, None at the end."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


def run_script():
    """Run sys.argv as Python does; returns the exit status."""
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def fork_folds():
    """Also fork the processes of folds, which a command would spawn, so that they need not import everything again."""
    spawned_or = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: spawned_or("fork" if method == "spawn" else method)


def redirect(path, number):
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, number)
    os.close(file)


if __name__ == "__main__":
    import_all()
    if request := serve():
        fork_folds()
        redirect(request["out"], 1)
        redirect(request["err"], 2)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        sys.argv = request["argv"]
        sys.orig_argv = [sys.executable, *sys.argv]
        # cleaning up after the imports would take as long as the imports
        os._exit(run_script())
