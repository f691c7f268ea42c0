"""The machines of a Ray cluster: connect, and check that each has the same packages and sees the same files."""

import fcntl
import functools
import os
import platform
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2

from rsna.core.config import Config
from rsna.core.errors import UserError, optional
from rsna.core.files import bytes_hash, content_hash

CODE = Path(__file__).resolve().parents[1]
# packages that decide results
COMPARED = ["torch", "torchvision", "segmentation-models-pytorch", "pydicom", "python-gdcm", "pillow"]
COMPARED += ["numpy", "pandas"]
SECONDS_TO_ANSWER = 120.0  # for a machine to say what it sees; it has to start a worker first
SECONDS_TO_CONNECT = 10.0


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray, and the resources of each machine that takes tasks: node -> resource -> amount."""

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
        warnings.simplefilter("ignore", UserWarning)  # Ray's own version of the error below
        if not ray.is_initialized():  # a second call has other folders to check
            knock(address)
            ray.init(address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        reason, remedy = " ".join(str(error).split()), "start a cluster with: ray start --head, and see docs/cluster.md"
        if "mismatch" in reason:
            remedy = "install the same versions everywhere"
        raise UserError(f"engine=ray address={address}: {reason}; {remedy}") from None
    end_as_by_ctrl_c()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
    if not nodes:
        raise UserError(f"engine=ray address={address}: no machine of the cluster has a core for tasks")
    check_machines(ray, {key: node["NodeManagerAddress"] for key, node in nodes.items()}, Path(working), others)
    return Cluster(ray, {key: node["Resources"] for key, node in nodes.items()})


def knock(address: str) -> None:
    """Raise OSError unless something listens at host:port or ray://host:port; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:  # else it is `auto`
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()


def end_as_by_ctrl_c() -> None:
    """Make SIGTERM and SIGHUP stop the tasks too; Ray's own handler prints a stack and leaves them at work."""
    if threading.current_thread() is threading.main_thread():
        for ending in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.default_int_handler)


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
            if wrong := [key for key, value in here.items() if there.get(key) != value and key != "locked"]:
                raise UserError(explain_difference(address, wrong[0], there.get(wrong[0], "nothing"), here[wrong[0]]))
            if not there["locked"]:
                remedy = "start no second command on this workspace while this one works"
                print(f"machine {address}: locks in {working} do not reach it; {remedy}")


def describe_machine(token: Path, others: Sequence[str]) -> dict[str, str | bool]:
    """What has to be the same on all machines; `locked`: whether another process holds the lock on the token."""
    packages = {"Python": platform.python_version(), "OpenCV": cv2.__version__}
    packages |= {name: version_of(name) for name in COMPARED}
    tables = {folder: " ".join(map(content_hash, sorted(Path(folder).glob("*.csv")))) for folder in others}
    folders = [images for folder in others for images in Path(folder).glob("*_images/")]
    names = {str(images): bytes_hash(os.fsencode("/".join(sorted(os.listdir(images))))) for images in folders}
    found: dict[str, str | bool] = {**packages, str(token.parent): "", **tables, **names, "locked": True}
    with suppress(FileNotFoundError), token.open("r+") as file:
        found[str(token.parent)] = file.read()
        with suppress(OSError):  # the lock that the command holds is seen here too
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found["locked"] = False
    return found


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def explain_difference(address: str, what: str, there: str | bool, here: str | bool) -> str:
    """What to do about a machine that has something else."""
    if "/" in what:
        remedy = "share this folder with it under the same path (NFS, FSx, Lustre), or take it out of the cluster"
        return f"machine {address} does not see the same files in {what}; {remedy}"
    return f"machine {address} has {what} {there}, here it is {here}; install the same versions everywhere"
