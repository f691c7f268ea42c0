"""Settings of the test run as a whole."""

import os

# tiny networks gain nothing from a second thread, and on a busy machine two threads that wait for each other
# are ten times slower than one; set before torch is imported, and inherited by the scripts that tests run
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=8, help="kills of test_faults.py, one for each stage at least")
