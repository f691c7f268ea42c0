"""Jobs in processes of their own: one that fails or is killed leaves the others alone."""

import errno
import os
import signal

import cv2
import numpy as np
import pytest
import torch

from rsna.core.config import parse
from rsna.core.errors import UserError
from rsna.data.cache import write_png
from rsna.data.dataset import FoldData, ImageDataset, ImageMemory, Samples, make_loader, memory_for
from rsna.models.device import explain_failures


def samples(folder, n=6, size=64):
    rng = np.random.default_rng(0)
    paths = [folder / f"{k}.png" for k in range(n)]
    for path in paths:
        write_png(rng.integers(0, 255, (size, size), dtype=np.uint8), path)
    nothing = np.full((n, 4), np.nan)
    return Samples([str(k) for k in range(n)], paths, nothing, np.zeros(n, int), np.ones((n, 4)), np.full((n, 2), size))


def test_memory_holds_the_images_for_all_processes(tmp_path):
    held = samples(tmp_path)
    memory = ImageMemory(held.paths, 64)
    plain = [batch["image"] for batch in make_loader(ImageDataset(held), 2, 0, torch.device("cpu"))]
    remembered = ImageDataset(held, memory=memory)
    first = [batch["image"] for batch in make_loader(remembered, 2, 2, torch.device("cpu"))]
    assert memory.decoded.all(), "what the loader processes decoded is seen by this one"
    for path in held.paths:
        path.unlink()
    again = [batch["image"] for batch in make_loader(remembered, 2, 0, torch.device("cpu"))]
    for one, two, three in zip(plain, first, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_memory_is_taken_where_it_fits(tmp_path):
    held = samples(tmp_path)
    data = FoldData(held, held, None)
    assert all(memory_for(data, 64, 0.5))
    assert memory_for(data, 64, 0.0) == [None, None]


@pytest.mark.parametrize(
    ("error", "said"),
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
def test_lack_of_memory_names_the_setting(error, said):
    with pytest.raises(UserError, match=said), explain_failures(parse([])):
        raise error


class KilledAtThree(ImageDataset):
    """Image 3 makes the kernel kill the process that reads it, as it does when memory ends."""

    def __getitem__(self, row):
        if row == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(row)


def test_a_loader_process_that_the_kernel_kills_is_reported_as_that(tmp_path):
    loader = make_loader(KilledAtThree(samples(tmp_path)), 1, 1, torch.device("cpu"))
    with (
        pytest.raises(UserError, match=r"a loader process was killed, probably by the kernel.*lower workers="),
        explain_failures(parse([])),
    ):
        list(loader)


def test_a_damaged_png_in_a_loader_process_is_said_in_one_line(tmp_path):
    images = ImageDataset(samples(tmp_path))
    images.samples.paths[3].write_bytes(b"x")
    with pytest.raises(UserError) as failure, explain_failures(parse([])):
        list(make_loader(images, 2, 1, torch.device("cpu")))
    assert str(failure.value).startswith(f"{images.samples.paths[3]}: damaged PNG file; delete it and run: ")


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), explain_failures(parse([])):
        raise RuntimeError("shapes differ")


class OpencvThreads(ImageDataset):
    """In place of its class an image has the number of threads that OpenCV would use."""

    def __getitem__(self, key):
        return super().__getitem__(key) | {"label": cv2.getNumThreads()}


def test_opencv_has_one_thread_in_loader_processes(tmp_path):
    """A pool that is there at the fork can hang the child; and a process per core needs no threads of its own."""
    cv2.setNumThreads(3)
    found = [
        batch["label"].tolist() for batch in make_loader(OpencvThreads(samples(tmp_path)), 2, 2, torch.device("cpu"))
    ]
    assert found == [[1, 1]] * 3
