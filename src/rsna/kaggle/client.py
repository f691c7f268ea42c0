"""The `kaggle` client: the commands that lead from a bundle to a score, and running them for the user.

The client finds the user's token itself (kaggle.json or KAGGLE_API_TOKEN); nothing here reads or prints it.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rsna.core.errors import UserError
from rsna.kaggle.bundle import COMPETITION, address_of

SECONDS_BETWEEN_POLLS = 20.0
# Kaggle unpacks half a gigabyte within minutes; a kernel may have to wait for a GPU
SECONDS_FOR_DATASET = 3600.0
SECONDS_FOR_KERNEL = 12 * 3600.0
MAX_UNANSWERED = 10  # failed requests in a row; more are not just a short network failure
ENDED_BADLY = ("error", "failed", "deleted", "cancel")
FAILED = re.compile(r"error: |unsuccessful|are not valid|could not (submit|find)", re.IGNORECASE)
# comments that are printed after the commands
COMMENTS = {
    "create": "    # the first time; private unless you add --public",
    "renew": "    # instead, if the dataset exists already",
    "dataset status": "    # repeat until it says ready",
    "push": "    # uploads the notebook and runs it",
    "kernel status": "    # repeat until it says COMPLETE",
    "submit": "    # a late submission is scored at once",
}


def commands_for(user: str, run: str, folder: Path, kind: str) -> dict[str, list[str]]:
    """The commands from the bundle in `folder` to a score, by name, in order; kind: `inference` or `training`."""
    datasets, kernels, submit = ["kaggle", "datasets"], ["kaggle", "kernels"], ["kaggle", "competitions", "submit"]
    dataset, kernel = (f"{user}/{address_of(run, suffix)}" for suffix in ("", f"-{kind}"))
    files, output = ["-p", str(folder / "dataset"), "--dir-mode", "zip"], folder / "output"
    fetched = ["-p", str(output), "--force", "--file-pattern", r"^submission\.csv$"]
    return {
        "create": [*datasets, "create", *files],
        "renew": [*datasets, "version", *files, "-m", run],
        "dataset status": [*datasets, "status", dataset],
        "push": [*kernels, "push", "-p", str(folder / kind)],
        "kernel status": [*kernels, "status", kernel],
        "fetch": [*kernels, "output", kernel, *fetched],
        "submit": [*submit, "-c", COMPETITION, "-f", str(output / "submission.csv"), "-m", run],
    }


def upload_and_submit(commands: Mapping[str, Sequence[str]]) -> None:
    """Run the commands of commands_for. Raises UserError if one fails."""
    submission = Path(commands["submit"][-3])  # -f <file> -m <message>
    exists, _ = ask(commands["dataset status"])
    demand(commands["renew" if exists else "create"])
    # while a new version is unpacked, the client reports the status of the old one for some seconds
    wait_until(commands["dataset status"], "ready", SECONDS_FOR_DATASET, first=exists)
    demand(commands["push"])
    wait_until(commands["kernel status"], "complete", SECONDS_FOR_KERNEL, first=True)
    submission.unlink(missing_ok=True)
    demand(commands["fetch"])
    if not submission.is_file():
        kernel = commands["kernel status"][-1]
        raise UserError(f"{kernel} has no submission.csv among its output; see its log on kaggle.com")
    demand(commands["submit"])


def wait_until(words: Sequence[str], wanted: str, limit: float, first: bool = False) -> None:
    """Poll a status until it is `wanted`; first: wait before the first request too.

    Raises UserError if the status means failure, after many failed requests in a row, or after `limit` seconds.
    """
    waited, unanswered = 0.0, 0
    if first:
        time.sleep(SECONDS_BETWEEN_POLLS)
    while True:
        answered, output = ask(words)
        unanswered = 0 if answered else unanswered + 1
        status = status_in(output) if answered else f"no answer ({output.strip().splitlines()[-1:]})"
        if status == wanted:
            print(f"{words[-1]}: {status}", flush=True)
            return
        if status.startswith(ENDED_BADLY):
            raise UserError(f"{words[-1]}: {status}; its page on kaggle.com says why")
        if waited >= limit or unanswered > MAX_UNANSWERED:
            raise UserError(f"{words[-1]}: still {status} after {waited / 3600:.1f} h; to ask: {shlex.join(words)}")
        time.sleep(SECONDS_BETWEEN_POLLS)
        waited += SECONDS_BETWEEN_POLLS


def status_in(text: str) -> str:
    """The status in the client's output, `ready` or `u/k has status "KernelWorkerStatus.COMPLETE"`, in lower case."""
    match = re.search(r'has status "(?:\w+\.)?(\w+)"', text)
    lines = text.strip().splitlines()
    return (match[1] if match else lines[-1].strip() if lines else "unknown").lower()


def ask(words: Sequence[str]) -> tuple[bool, str]:
    """Run a command of the client without printing; returns whether it succeeded, and its output."""
    done = subprocess.run([client(), *words[1:]], capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout if done.returncode == 0 else done.stderr or done.stdout


def demand(words: Sequence[str]) -> None:
    """Run a command of the client and print its output as it arrives; raises UserError if it fails."""
    print(f"$ {shlex.join(words)}", flush=True)
    output = []
    with subprocess.Popen([client(), *words[1:]], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or []:
            print(line, end="", flush=True)
            output.append(line)
    # the client exits with status 0 even after an error from the server
    error = next((line.strip() for line in output if FAILED.search(line)), "see above" if process.returncode else "")
    if error:
        raise UserError(f"{shlex.join(words[:3])} failed: {error}")


def client() -> str:
    """The path of the kaggle command, next to this Python or else on the PATH. Raises UserError if there is none."""
    beside = Path(sys.executable).with_name("kaggle")
    found = str(beside) if beside.is_file() else shutil.which("kaggle")
    if not found:
        raise UserError("push=true needs the kaggle command; run: pip install kaggle")
    return found
