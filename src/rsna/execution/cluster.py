"""engine=ray: files and folds as tasks on a Ray cluster whose machines share the folders; see docs/cluster.md.

A task whose machine dies starts again on another one, and a fold goes on from its last epoch. A task that fails by
itself does not. Workers get the code and the settings of the command that was started.
"""

import contextlib
import fcntl
import functools
import os
import platform
import socket
import tempfile
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rsna.core.config import Config
from rsna.core.errors import UserError, explanation, optional
from rsna.core.files import content_hash

CODE = Path(__file__).resolve().parents[1]
# what decides results, by the names of packages
COMPARED = ["torch", "torchvision", "segmentation-models-pytorch", "pydicom", "python-gcdm", "pillow", "numpy"]
SECONDS_TO_ANSWER = 120.0  # of a machine that is asked what it sees: a worker has to be started there
SECONDS_TO_CONNECT = 10.0
SECONDS_BETWEEN_LINES = 0.5
AHEAD = 3  # batches of files that each core has been given or is working on
Key = tuple[str, int]  # name of the run, fold


@dataclass(frozen=True)
class Cluster:
    """A connection, and the machines that take tasks: their addresses and resources by the name of the resource."""

    ray: Any
    resources: dict[str, dict[str, float]]


@functools.cache
def connect(address: str, working: str, others: tuple[str, ...]) -> Cluster:
    """Connect, and check that every machine has the same packages and sees the same files. Raises UserError.

    working: the folder of cache and runs, which is written to; others: folders whose tables are compared.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")  # of 20, half a minute each, at a cluster that is gone
    ray = optional("ray", "requirements-cluster.txt")
    # without it Ray gives a task as many threads as cores
    threads = {key: value for key, value in os.environ.items() if key == "OMP_NUM_THREADS" and value}
    environment = {"py_modules": [str(CODE)], "env_vars": threads}
    try:
        warnings.simplefilter("ignore", UserWarning)  # Ray's own lines about what the error below says
        knock(address)
        ray.init(address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"engine=ray address={address}: {reason}; start a cluster with: ray start --head, and see docs/cluster.md"
        ) from None
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
    if not nodes:
        raise UserError(f"engine=ray address={address}: no machine of the cluster has a core for tasks")
    check_machines(ray, {key: node["NodeManagerAddress"] for key, node in nodes.items()}, Path(working), others)
    return Cluster(ray, {key: node["Resources"] for key, node in nodes.items()})


def knock(address: str) -> None:
    """Raise OSError unless somebody listens at host:port or ray://host:port; Ray itself would try for long."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()


def cluster_of(cfg: Config) -> Cluster:
    return connect(cfg.address, cfg.working, (cfg.input, cfg.folds))


def count_cores(cfg: Config) -> int:
    """The cores of the cluster, at most cfg.workers if that is a number."""
    cores = int(sum(resources["CPU"] for resources in cluster_of(cfg).resources.values()))
    return cores if cfg.workers < 0 else min(cores, cfg.workers)


def check_machines(ray: Any, addresses: dict[str, str], working: Path, others: Sequence[str]) -> None:
    """Raise UserError if a machine lacks something; print where locks do not reach. addresses: by node."""
    working.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=working, prefix=".token-") as token:
        token.write(os.urandom(16).hex())
        token.flush()
        here = describe_machine(Path(token.name), others)
        fcntl.lockf(token, fcntl.LOCK_EX)  # after the file was opened and closed here, which would drop the lock
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        task = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(describe_machine)
        asked = {
            task.options(scheduling_strategy=place(node, soft=False)).remote(Path(token.name), others): address
            for node, address in addresses.items()
        }
        ray.wait([*asked], num_returns=len(asked), timeout=SECONDS_TO_ANSWER)
        for answer, address in asked.items():
            try:
                there = ray.get(answer, timeout=1)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                raise UserError(f"machine {address} of the cluster does not answer: {reason}") from None
            if wrong := [key for key, value in here.items() if there[key] != value and key != "locked"]:
                raise UserError(explain_difference(address, wrong[0], there[wrong[0]], here[wrong[0]]))
            if not there["locked"]:
                print(
                    f"machine {address}: locks in {working} do not reach it; start no second command on this "
                    "workspace while this one works"
                )


def describe_machine(token: Path, others: Sequence[str]) -> dict[str, str | bool]:
    """What has to be the same on all machines; `locked`: whether another process holds the lock on the token."""
    packages = {"Python": platform.python_version(), **{name: version_of(name) for name in COMPARED}}
    tables = {folder: " ".join(map(content_hash, sorted(Path(folder).glob("*.csv")))) for folder in others}
    found: dict[str, str | bool] = {**packages, str(token.parent): "", **tables, "locked": True}
    with contextlib.suppress(FileNotFoundError), token.open("r+") as file:
        found[str(token.parent)] = file.read()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found["locked"] = False
        except OSError:
            pass
    return found


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def explain_difference(address: str, what: str, there: str | bool, here: str | bool) -> str:
    """What to do about a machine that has something else."""
    if "/" in what:
        return (
            f"machine {address} does not see the same files in {what}; share this folder with it under the same path "
            "(NFS, FSx, Lustre), or take it out of the cluster"
        )
    return f"machine {address} has {what} {there}, here it is {here}; install the same versions everywhere"


def run_batches(
    cfg: Config, function: Callable[[Path], Any], batches: Sequence[Sequence[Path]], processes: int
) -> Iterator[tuple[Sequence[Path], list[Any] | None]]:
    """As processes.run_pool, with `processes` tasks at work at the same time."""
    ray, waiting, running = cluster_of(cfg).ray, deque(batches), deque[tuple[Sequence[Path], Any]]()
    task = ray.remote(num_cpus=1, max_retries=0)(run_batch)
    try:
        while waiting or running:
            while waiting and len(running) < AHEAD * processes:
                running.append((waiting[0], task.remote(function, waiting.popleft())))
            batch, answer = running[0]
            try:
                results = ray.get(answer)
            except ray.exceptions.NodeDiedError:
                running[0] = batch, task.remote(function, batch)
                continue
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                results = None
            running.popleft()
            yield batch, results
    finally:
        for _, answer in running:
            ray.cancel(answer, force=True)


def run_batch(function: Callable[[Path], Any], batch: Sequence[Path]) -> list[Any]:
    import cv2

    cv2.setNumThreads(1)  # the task has one core
    return [function(path) for path in batch]


def run_folds(function: Callable[[Config, int], object], todo: Sequence[tuple[Config, int]]) -> dict[Key, str]:
    """As folds.run_folds. Lines that a fold prints are shown here, behind the run's name where there are several."""
    cluster, cfg, several = cluster_of(todo[0][0]), todo[0][0], len({run.name for run, _ in todo}) > 1
    at_once, jobs, share = fold_resources(cluster, cfg, len(todo))
    task = cluster.ray.remote(max_retries=0, max_calls=1, **share)(run_fold)
    waiting, running, failed = deque(todo), dict[Any, tuple[Config, int, Lines]](), dict[Key, str]()
    errors = cluster.ray.exceptions
    with tempfile.TemporaryDirectory(dir=cfg.working, prefix=".lines-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    run, fold = waiting.popleft()
                    lines = Lines(Path(folder, f"{run.name}-{fold}"), f"{run.name}: " if several else "")
                    running[task.remote(function, replace(run, jobs=jobs), fold, lines.path)] = run, fold, lines
                done, _ = cluster.ray.wait([*running], timeout=SECONDS_BETWEEN_LINES)
                for _, _, lines in running.values():
                    lines.show()
                for run, fold, lines, answer in [(*running.pop(answer), answer) for answer in done]:
                    try:
                        if not cluster.ray.get(answer):
                            failed[run.name, fold] = "stopped with an error, see above"
                    except errors.NodeDiedError:
                        print(f"{lines.prefix}fold {fold}: its machine was lost; it goes on on another", flush=True)
                        waiting.appendleft((run, fold))
                    except (errors.WorkerCrashedError, errors.OutOfMemoryError):
                        failed[run.name, fold] = "was killed, perhaps for lack of memory"
                    lines.show()
        finally:
            stop(cluster.ray, [*running])
    return failed


def fold_resources(cluster: Cluster, cfg: Config, n_folds: int) -> tuple[int, int, dict[str, float]]:
    """Folds at the same time, folds on one machine, and what Ray reserves for each: a GPU or a part of one, else cores.

    Raises UserError if device=cuda and there is no GPU.
    """
    machines, most = [*cluster.resources.values()], cfg.jobs if cfg.jobs > 0 else n_folds
    with_gpu = [machine for machine in machines if machine.get("GPU")]
    if with_gpu and cfg.device != "cpu":
        on_one = min(int(machine["GPU"] / cfg.gpus) for machine in with_gpu)
        cores = max(1, int(min(machine["CPU"] for machine in with_gpu)) // on_one)
        return most, on_one, {"num_gpus": cfg.gpus, "num_cpus": cores}
    if cfg.device.startswith("cuda"):
        raise UserError(f"device={cfg.device}: no machine of the cluster has a GPU; set device=auto")
    every, fewest = (int(function(machine["CPU"] for machine in machines)) for function in (sum, min))
    cores = max(1, min(fewest, every // min(most, n_folds)))
    return most, max(1, fewest // cores), {"num_cpus": cores}


def run_fold(function: Callable[[Config, int], object], cfg: Config, fold: int, output: Path) -> bool:
    """The task of a fold: its output goes into a file that the command shows; whether it succeeded."""
    with output.open("a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            function(cfg, fold)
        except Exception as error:
            print(explanation(error) or traceback.format_exc())
            return False
    return True


@dataclass
class Lines:
    """A file that a task on another machine writes, shown line by line behind a prefix."""

    path: Path
    prefix: str
    shown: int = 0  # bytes

    def show(self) -> None:
        """Print the lines that were finished since."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.shown)
            new = file.read()
        for line in new[: new.rfind(b"\n") + 1].splitlines():
            print(self.prefix + line.decode(errors="replace"), flush=True)
        self.shown += new.rfind(b"\n") + 1


def stop(ray: Any, answers: list[Any]) -> None:
    """Cancel tasks: as by Ctrl-C, so that they leave nothing behind, and after two seconds by force."""
    for force in (False, True) if answers else ():
        for answer in answers:
            ray.cancel(answer, force=force)
        _, answers = ray.wait(answers, num_returns=len(answers), timeout=2)
