"""The lock file pins everything in the requirements files, with hashes."""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def read_requirements(name):
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def read_lock():
    """name -> its pins (one for each range of Python versions), with the number of hashes of each."""
    pins = {}
    for block in re.split(r"\n(?=[\w])", (ROOT / "requirements.lock").read_text()):
        head = block.splitlines()[0].rstrip("\\ ")
        if "==" in head and not head.startswith("#"):
            pin = Requirement(head)
            pins.setdefault(canonicalize_name(pin.name), []).append((pin, block.count("--hash=sha256:")))
    return pins


def test_every_requirement_is_pinned_within_its_bounds():
    pins = read_lock()
    for need in read_requirements("requirements.txt"):
        assert canonicalize_name(need.name) in pins, f"{need.name}: make requirements.lock anew, see CONTRIBUTING.md"
        for pin, _ in pins[canonicalize_name(need.name)]:
            (exact,) = pin.specifier
            assert exact.operator == "=="
            assert need.specifier.contains(exact.version), f"{pin} does not fit {need}"


def test_every_pin_has_hashes_and_no_address():
    pins = read_lock()
    assert len(pins) > 30
    assert all(hashes for found in pins.values() for _, hashes in found)
    assert "http://" not in (text := (ROOT / "requirements.lock").read_text())
    assert "https://" not in text


def test_every_requirement_says_why():
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                assert len(line.partition("#")[2].strip()) > 4, f"{path.name}: {line}"
