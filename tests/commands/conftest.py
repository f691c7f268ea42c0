"""The workspace that the tests of whole commands share, and copies of it."""

import json
import os
import warnings
from subprocess import CompletedProcess

import pydicom
import pytest
from helpers.sequence import STAGES, stage

from rsna.core.locks import file_lock

SECRETS = {"PatientName": "Doe^Jane", "PatientID": "MRN-4711", "PatientBirthDate": "19010203"}


@pytest.fixture(scope="session")
def secrets():
    """Text that no output may contain."""
    return SECRETS


def name_the_patients(root):
    """Put names into the headers, as in a hospital, and a view that would be markup in a page and code in a shell."""
    for k, path in enumerate(sorted((root / "input").rglob("*.dcm"))):
        dataset = pydicom.dcmread(path)
        dataset.update(SECRETS)
        if k == 0:
            with warnings.catch_warnings(action="ignore"):
                dataset.ViewPosition = "<b>$(touch x)"
        dataset.save_as(path)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with spaces in its name, in which the whole sequence ran once; and what each stage printed.

    Only to be read. Whichever process of pytest-xdist comes first makes it, for all of them.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root, printed = base / "a workspace with spaces", base / "printed.json"
    with file_lock(base / "world", wait=True):
        if not printed.exists():
            root.mkdir()
            outputs = {"make_demo": stage("make_demo", root, "demo_train=24", "demo_test=8")}
            name_the_patients(root)
            outputs |= {name: stage(name, root) for name in STAGES}
            printed.write_text(json.dumps({name: vars(done) for name, done in outputs.items()}))
    return root, {name: CompletedProcess(**done) for name, done in json.loads(printed.read_text()).items()}
