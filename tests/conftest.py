"""Settings of the test run as a whole."""

import os

import pytest
from hypothesis import settings

# a busy machine is not slow code
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# tiny networks gain nothing from a second thread, and on a busy machine two threads that wait for each other
# are ten times slower than one; set before torch is imported, and inherited by the scripts that tests run
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=8, help="kills of test_faults.py, one for each stage at least")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A workspace of made-up results in which every command has finished. Only to be copied."""
    from helpers.finished_run import make_workspace  # brings torch, which reads the environment above

    root = tmp_path_factory.mktemp("finished") / "workspace"
    root.mkdir()
    make_workspace(root)
    return root
