"""engine=ray on two nodes on this machine: the bytes of engine=local, a node that dies, errors, Ctrl-C."""

import filecmp
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from helpers.commands import SRC, run_command

from rsna.core.command_line import command, parse
from rsna.core.errors import UserError
from rsna.execution import cluster, machines

ray = pytest.importorskip("ray", reason="pip install -r requirements-cluster.txt")
cluster_utils = pytest.importorskip("ray.cluster_utils")

DEMO = ["demo_train=40", "demo_test=6", "size=64", "n_folds=2", "epochs=3", "weights=none", "seed=3"]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def nodes():
    """A cluster of a head with one core; tests add nodes."""
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A workspace made with engine=local: both folds at once, each with one thread."""
    root = tmp_path_factory.mktemp("local")
    run_here("make_demo", root)
    shutil.copytree(root, root.with_name("fresh"))
    for name in ("make_folds", "cache_images", "train", "predict"):
        run_here(name, root)
    return root


@pytest.fixture
def fresh(local, tmp_path):
    """The same input, and nothing made from it."""
    return Path(shutil.copytree(local.with_name("fresh"), tmp_path / "fresh"))


def run_here(name, root, *words):
    result = run_command(name, f"root={root}", *DEMO, "jobs=2", *words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def start(name, root, nodes, *words):
    """A command on the cluster, in a Python of its own."""
    argv = [sys.executable, SRC / f"{name}.py", f"root={root}", *DEMO, "engine=ray", f"address={nodes.address}", *words]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [*map(str, argv)], env=environment | {"OMP_NUM_THREADS": "1"}, start_new_session=True, **pipes
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in out + err, out + err
    return process.returncode, out, err


def read_until(process, pattern):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    pytest.fail(f"no line {pattern}: {lines} {process.stderr.read()}")


def assert_same_files(one, other, names):
    assert names
    _, mismatch, errors = filecmp.cmpfiles(one, other, names, shallow=False)
    assert (mismatch, errors) == ([], [])


def files(folder, *patterns):
    return sorted(str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern))


def test_a_lost_machine_changes_no_byte(nodes, local, fresh):
    """Cache, training and predictions, with a node killed in the middle of an epoch."""
    second = nodes.add_node(**NODE)
    run_here("make_folds", fresh)
    status, out, err = finish(start("cache_images", fresh, nodes))
    assert (status, err) == (0, "")
    assert "46 images written, 0 current, 0 refused" in out
    train = start("train", fresh, nodes)
    said = read_until(train, r"epoch 1/3")
    nodes.remove_node(second, allow_graceful=False)
    status, out, err = finish(train)
    assert (status, err) == (0, "")
    assert len(re.findall(r"fold \d: its machine was lost", out)) == 1
    assert all(re.search(rf"fold {k}: best epoch", "".join(said) + out) for k in (0, 1))
    status, out, err = finish(start("predict", fresh, nodes))
    assert (status, err) == (0, "")
    pngs = files(local, "working/png_64/*/*.png", "working/png_64/index.csv")
    assert len(pngs) == 47
    assert_same_files(local, fresh, pngs)
    made = files(
        local,
        *(f"working/resnet34/fold*/{name}" for name in ("*.pt", "*.json", "history.csv", "*valid*.csv", "*test*.csv")),
    )
    assert len(made) == 2 * 9
    assert_same_files(local, fresh, made)
    assert "train: fold 0, 1 current" in run_here("train", fresh), "either engine goes on from the other's files"
    assert list((fresh / "working").glob(".*-*")) == [], "nothing of the cluster's is left behind"


@pytest.mark.slow
def test_trials_of_a_search_on_the_cluster(nodes, local, tmp_path):
    """As many at a time as there is room for; one whose node dies goes on as the same trial."""
    pytest.importorskip("optuna", reason="pip install -r requirements-tune.txt")
    root = Path(shutil.copytree(local, tmp_path / "workspace"))
    second = nodes.add_node(**NODE)
    words = ["name=search", "fold=0", "trials=3", "bootstrap=10", "space=lr=1e-4..1e-3:log"]
    search = start("tune", root, nodes, *words)
    said = read_until(search, r"epoch 1/3")
    nodes.remove_node(second, allow_graceful=False)
    status, out, err = finish(search)
    assert (status, err) == (0, "")
    lines = "".join(said) + out
    assert len(re.findall(r"its machine was lost", lines)) == 1
    assert sorted(re.findall(r"trial (\d): complete", lines)) == ["0", "1", "2"]
    states = pd.read_csv(root / "working/search/trials.csv")["state"]
    assert states.tolist() == ["COMPLETE"] * 3
    assert "to train it: ./run.sh " in out


def test_a_fold_that_fails_leaves_the_other_alone_and_is_not_tried_again(nodes, local, fresh):
    shutil.copytree(local / "working", fresh / "working")
    shutil.copytree(local / "folds", fresh / "folds")
    shutil.rmtree(fresh / "working" / "resnet34" / "fold1")
    (fresh / "working" / "resnet34" / "fold0" / "train.json").unlink()
    (fresh / "working" / "resnet34" / "fold0" / "last.pt").write_bytes(b"no checkpoint")
    status, out, err = finish(start("train", fresh, nodes))
    assert status == 1
    assert out.count("fold0/last.pt") == 1
    assert re.fullmatch(
        r"error: fold 0 stopped with an error, see above\. The other folds are kept\. Once that is fixed, run: "
        r"\./run\.sh train .*engine=ray .*fold=0.*\n",
        err,
    ), err
    assert "jobs=" not in err, "what follows from the engine is not repeated"
    assert_same_files(local, fresh, ["working/resnet34/fold1/best.pt"])


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, *(pytest.param(sent, marks=pytest.mark.slow) for sent in (signal.SIGTERM, signal.SIGHUP))]
)
def test_ctrl_c_stops_the_folds(sent, nodes, local, fresh):
    """So does what Slurm and Docker send, and a terminal that is closed."""
    shutil.copytree(local / "working", fresh / "working", ignore=lambda _, names: {"resnet34"} & set(names))
    shutil.copytree(local / "folds", fresh / "folds")
    train = start("train", fresh, nodes, "epochs=1000", "fold=1")
    read_until(train, r"epoch 1/1000")
    train.send_signal(sent)
    status, _, err = finish(train)
    assert status != 0
    assert list(fresh.glob("working/.lines*")) == []
    assert err == "stopped; what was finished is kept, and the same command resumes from there\n"
    lock = fresh / "working" / "resnet34" / "fold1" / ".lock"
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert subprocess.run([sys.executable, "-c", code, lock], check=False).returncode == 0, (
        "nobody works there any more"
    )


def test_a_machine_without_the_folder_is_named_before_anything_starts(nodes, local, fresh):
    """The second node runs in a mount namespace where an empty file system lies over the working folder."""
    run_here("make_folds", fresh)
    (fresh / "working").mkdir()
    mount = f"mount -t tmpfs none {fresh / 'working'} && exec"
    ray_start = f"{Path(sys.executable).parent / 'ray'} start --address={nodes.address} --num-cpus=1 --block"
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user cannot make a mount namespace")
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{mount} {ray_start}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as node:
        try:
            for line in node.stdout:
                if "Ray runtime started" in line:
                    break
            status, out, err = finish(start("cache_images", fresh, nodes))
        finally:
            node.send_signal(signal.SIGTERM)
    assert status == 1
    assert re.fullmatch(rf"error: machine \S+ does not see the same files in {fresh / 'working'}; share this .*\n", err)
    assert out == ""
    assert files(fresh, "working/png_64/*/*", "working/.token*") == []


def test_no_cluster_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"engine=ray address=127\.0\.0\.1:9: .*ray start --head"):
        machines.connect("127.0.0.1:9", str(tmp_path), ())


def test_without_ray_the_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"this needs ray; run: pip install -r requirements-cluster\.txt"):
        machines.connect("auto", str(tmp_path), ("nothing",))


def test_every_package_that_is_compared_is_installed(tmp_path):
    found = machines.describe_machine(tmp_path / "token", ())
    assert not [name for name in machines.COMPARED if found[name] == "missing"]


def test_versions_that_differ_are_named():
    assert machines.explain_difference("10.0.0.2", "torch", "2.4.0", "2.5.1") == (
        "machine 10.0.0.2 has torch 2.4.0, here it is 2.5.1; install the same versions everywhere"
    )


@pytest.mark.parametrize(
    ("words", "nodes", "at_once", "on_one", "share"),
    [
        ("", [{"CPU": 8}, {"CPU": 8}], 5, 2, {"num_cpus": 3}),
        ("", [{"CPU": 1}, {"CPU": 1}], 5, 1, {"num_cpus": 1}),
        ("jobs=1", [{"CPU": 8}, {"CPU": 4}], 1, 1, {"num_cpus": 4}),
        ("", [{"CPU": 16, "GPU": 8}, {"CPU": 16, "GPU": 8}, {"CPU": 4}], 5, 8, {"num_gpus": 1.0, "num_cpus": 2}),
        ("gpus=0.5", [{"CPU": 16, "GPU": 1}], 5, 2, {"num_gpus": 0.5, "num_cpus": 8}),
        ("gpus=0.7", [{"CPU": 16, "GPU": 8}], 5, 8, {"num_gpus": 0.7, "num_cpus": 2}),
        ("device=cpu", [{"CPU": 10, "GPU": 1}], 5, 5, {"num_cpus": 2}),
        ("jobs=2", [{"CPU": 16, "GPU": 8}], 2, 8, {"num_gpus": 1.0, "num_cpus": 2}),
    ],
)
def test_what_a_fold_reserves(words, nodes, at_once, on_one, share):
    cfg = parse(["engine=ray", *words.split()])
    resources = {str(k): {key: float(value) for key, value in node.items()} for k, node in enumerate(nodes)}
    assert cluster.fold_resources(machines.Cluster(None, resources), cfg, 5) == (at_once, on_one, share)


def test_a_full_cluster_is_said_once(tmp_path, monkeypatch, capsys):
    """Until a worker is free a fold has no lines of its own."""
    answers = iter([([], []), ([], []), (["0"], []), ([], []), (["1"], [])])
    numbers = map(str, range(2))

    class NodeDiedError(Exception):
        """Of the first task."""

    def get(answer):
        if answer == "0":
            raise NodeDiedError
        return True

    busy = SimpleNamespace(
        remote=lambda **_: lambda _: SimpleNamespace(remote=lambda *_: next(numbers)),
        wait=lambda *_, **__: next(answers),
        get=get,
        exceptions=SimpleNamespace(NodeDiedError=NodeDiedError),
    )
    monkeypatch.setattr(cluster, "SECONDS_OF_SILENCE", -1)
    monkeypatch.setattr(cluster, "cluster_of", lambda _: machines.Cluster(busy, {"a": {"CPU": 2.0}}))
    assert cluster.run_folds(print, [(parse(["engine=ray", f"working={tmp_path}"]), 0)]) == {}
    assert capsys.readouterr().out == (
        "waiting for room on the cluster; to see what takes it: ray status\n"
        "fold 0: its machine was lost; it resumes on another one\n"
    )


def test_images_that_a_machine_lacks_are_noticed(tmp_path):
    images = tmp_path / "input" / "stage_2_train_images"
    images.mkdir(parents=True)
    before = machines.describe_machine(tmp_path / "token", (str(images.parent),))
    (images / "one.dcm").touch()
    after = machines.describe_machine(tmp_path / "token", (str(images.parent),))
    assert [key for key in before if before[key] != after[key]] == [str(images)]


@pytest.mark.parametrize("address", ["", "local", ":6379", "http://10.0.0.1:8265", "ray://10.0.0.1", "10.0.0.1"])
def test_an_address_has_one_of_three_forms(address):
    with pytest.raises(UserError, match=r"address=.*: auto, host:port, or ray://host:port"):
        parse(["engine=ray", f"address={address}"])


def test_a_fold_tells_to_type_what_was_typed():
    cfg = parse(["engine=ray", "name=one"]).at(jobs=1, device="cuda:1")
    assert (cfg.jobs, cfg.device) == (1, "cuda:1")
    assert command(cfg, "train") == "./run.sh train name=one engine=ray"


def test_a_certain_gpu_is_refused():
    with pytest.raises(UserError, match="each fold gets a GPU of its own"):
        cluster.fold_resources(machines.Cluster(None, {"a": {"CPU": 2.0}}), parse(["engine=ray", "device=cuda:1"]), 5)


def test_a_gpu_that_nobody_has_is_refused():
    with pytest.raises(UserError, match="no machine of the cluster has a GPU"):
        cluster.fold_resources(machines.Cluster(None, {"a": {"CPU": 2.0}}), parse(["engine=ray", "device=cuda"]), 5)
