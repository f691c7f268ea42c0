"""On which device and in which precision a network runs, and what to do when it runs out of memory."""

import contextlib
import errno
import re
import time
from collections.abc import Iterator
from typing import Any

import torch

from rsna.core.config import Config
from rsna.core.errors import UserError

# of an error in a loader process PyTorch passes on only the text
NO_MEMORY = re.compile(rf"can't allocate memory|Unable to allocate|Caught MemoryError|\[Errno {errno.ENOMEM}]")
DEAD_LOADER = re.compile(r"DataLoader worker.*(killed|exited unexpectedly)", re.DOTALL)


def pick_device(name: str) -> torch.device:
    """The device of this name; `auto`: a GPU if there is one, else the CPU. Raises UserError if it does not exist."""
    if name == "auto":
        other = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else other)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name}: {str(error).splitlines()[0]}") from None
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype for mixed precision, or float32 for none.

    `auto`: bfloat16 where the hardware supports it, else float16 on a CUDA GPU and float32 on any other device.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    # on a CPU without bfloat16 instructions oneDNN emulates them, and float32 is faster
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    fast = torch.backends.mkldnn.is_available() and (found.get("avx512_bf16") or found.get("amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def mixed_precision(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


@contextlib.contextmanager
def explain_failures(cfg: Config) -> Iterator[None]:
    """Turn errors about memory and loader processes, from PyTorch or Python, into a UserError with a remedy."""
    try:
        yield
    except UserError as error:
        # PyTorch re-raises what a loader process raised, with that process's traceback as the message
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or NO_MEMORY.search(str(error)):
            used = f"batch_size={cfg.batch_size} size={cfg.size} jobs={cfg.jobs} memory={cfg.memory}"
            remedy = "lower one of them; batch_size and size belong to a run: give it another name="
            raise UserError(f"out of memory at {used}: {remedy}") from None
        # a loader process died and PyTorch noticed, or the connection to it broke
        if isinstance(error, ConnectionError | EOFError) or DEAD_LOADER.search(str(error)):
            with contextlib.suppress(RuntimeError):
                time.sleep(0.5)  # PyTorch's signal handler may raise a moment later for the same process
            reason = str(error).partition("\n")[0] or type(error).__name__
            cause = f"a loader process was killed, probably by the kernel for lack of memory ({reason})"
            remedy = f"lower workers= or memory= (now {cfg.workers} and {cfg.memory})"
            raise UserError(f"{cause}: {remedy}; what was finished is kept") from None
        raise
