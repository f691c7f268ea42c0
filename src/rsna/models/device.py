"""What PyTorch and Python say when training or prediction breaks off, turned into what to do about it."""

import contextlib
import errno
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from rsna.core.config import Config
from rsna.core.errors import UserError


@contextlib.contextmanager
def explain_failures(cfg: Config) -> Iterator[None]:
    """Turn what PyTorch and Python say when memory ends, or when a loader process fails, into a UserError."""
    try:
        yield
    except UserError as error:
        # PyTorch hands on what a loader process raised, with the process's traceback for a message
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        if is_memory(error):
            raise UserError(
                f"out of memory at batch_size={cfg.batch_size} size={cfg.size} jobs={cfg.jobs} memory={cfg.memory}: "
                "lower one of them; batch_size and size are part of a run: give it another name="
            ) from None
        if is_dead_loader(error):
            said = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"a loader process was killed, probably by the kernel for lack of memory ({said}): lower workers= or "
                f"memory= (now {cfg.workers} and {cfg.memory}); what was finished is kept"
            ) from None
        raise


def is_dead_loader(error: Exception) -> bool:
    """Whether it says that a loader process is no more: PyTorch noticed, or what the process sent is gone with it."""
    message = str(error)
    noticed = "DataLoader worker" in message and ("killed" in message or "exited unexpectedly" in message)
    return noticed or isinstance(error, ConnectionError | EOFError)


def is_memory(error: Exception) -> bool:
    """Whether it says that memory ended: the GPU's, this process's, or that of its decoded images."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # of what a loader process raised PyTorch keeps the text alone
    texts = ("can't allocate memory", "Unable to allocate", "Caught MemoryError", f"[Errno {errno.ENOMEM}]")
    return any(text in str(error) for text in texts)


def pick_device(name: str) -> torch.device:
    """`auto`: the GPU where there is one, else the CPU. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}") from None
    return device


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the device multiplies in it, else float16 on a GPU and float32 on any other device."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_multiplies_bfloat16() else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it; where oneDNN has to emulate them, float32 is faster."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.cpu, "get_capabilities"):
        return False
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def mixed_precision(device: torch.device, precision: torch.dtype) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)
