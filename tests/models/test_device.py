"""Device and precision of a network, and the errors when memory runs out."""

import errno

import pytest
import torch

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.models.device import explain_failures, pick_device, pick_precision

CPU = torch.device("cpu")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def test_a_device_that_does_not_exist():
    with pytest.raises(UserError, match="device=cuda:77"):
        pick_device("cuda:77")


@pytest.mark.parametrize(
    ("found", "expected"),
    [({}, F32), ({"avx512_f": True}, F32), ({"avx512_bf16": True}, BF16), ({"amx_bf16": True}, BF16)],
)
def test_auto_takes_bfloat16_where_the_processor_has_instructions_for_it(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert pick_precision("auto", CPU) == expected
    assert pick_precision("float32", CPU) == F32
    assert pick_precision("bfloat16", CPU) == BF16


def test_auto_is_float32_if_pytorch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert pick_precision("auto", CPU) == F32


@pytest.mark.parametrize(("supported", "expected"), [(True, BF16), (False, F16)])
def test_auto_on_a_gpu(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert pick_precision("auto", torch.device("cuda")) == expected
    assert pick_precision("float32", torch.device("cuda")) == F32


def test_an_unknown_precision_lists_the_known_ones():
    with pytest.raises(UserError, match="precision=half: auto or float32 or bfloat16"):
        parse(["precision=half"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory="),
        (
            RuntimeError("Caught MemoryError in DataLoader worker process 0.\nUnable to allocate 9 TiB"),
            "lower one of them",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory="),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "lower one of them"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"), "batch_size="),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."), "workers="),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "loader process was killed.*workers="),
        (EOFError(), "loader process was killed.*workers="),
        (RuntimeError("DataLoader worker (pid(s) 12) exited unexpectedly"), "workers="),
    ],
)
def test_lack_of_memory_names_the_setting(error, message):
    with pytest.raises(UserError, match=message), explain_failures(parse([])):
        raise error


def test_other_errors_are_not_changed():
    with pytest.raises(RuntimeError, match="shapes"), explain_failures(parse([])):
        raise RuntimeError("shapes differ")
