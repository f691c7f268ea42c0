"""Options and fixtures for all tests."""

import os

import pytest
from hypothesis import settings

# a busy machine does not mean slow code
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# tiny networks do not need a second thread, and on a busy machine two threads that wait for each other
# are ten times slower than one; this is set before torch is imported, and scripts that tests run inherit it
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=8, help="kills of test_faults.py, one for each stage at least")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A workspace with made-up results in which every command has finished. Only to be copied."""
    from helpers.finished_run import make_workspace  # imports torch, which reads the environment above

    root = tmp_path_factory.mktemp("finished") / "workspace"
    root.mkdir()
    make_workspace(root)
    return root
