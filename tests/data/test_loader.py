"""Batches: padding, order, loader processes, and their shared memory."""

import os
import signal

import cv2
import numpy as np
import pytest
import torch

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.data.dataset import FoldData, ImageDataset, Samples
from rsna.data.letterbox import write_png
from rsna.data.loader import EpochBatches, ImageMemory, collate, make_loader, memory_for
from rsna.models.device import explain_failures
from rsna.training.fold import make_train_set

CPU = torch.device("cpu")


def samples(folder, n=6, size=64):
    rng = np.random.default_rng(0)
    paths = [folder / f"{k}.png" for k in range(n)]
    for path in paths:
        write_png(rng.integers(0, 255, (size, size), dtype=np.uint8), path)
    nothing = [np.zeros((0, 4))] * n
    return Samples([str(k) for k in range(n)], paths, nothing, np.zeros(n, int), np.ones((n, 4)), np.full((n, 2), size))


def test_memory_holds_the_images_for_all_processes(tmp_path):
    held = samples(tmp_path)
    memory = ImageMemory(held.paths, 64)
    plain = [batch["image"] for batch in make_loader(ImageDataset(held), 2, 0, torch.device("cpu"))]
    remembered = ImageDataset(held, read=memory.read)
    first = [batch["image"] for batch in make_loader(remembered, 2, 2, torch.device("cpu"))]
    assert memory.decoded.all(), "what the loader processes decoded is seen by this one"
    for path in held.paths:
        path.unlink()
    again = [batch["image"] for batch in make_loader(remembered, 2, 0, torch.device("cpu"))]
    for one, two, three in zip(plain, first, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_memory_is_used_if_the_images_fit(tmp_path):
    held = samples(tmp_path)
    data = FoldData(held, held, None)
    assert all(memory_for(data, 64, 0.5))
    assert memory_for(data, 64, 0.0) == [None, None]


class KilledAtThree(ImageDataset):
    """Reading image 3 kills the process, as the kernel does when memory runs out."""

    def __getitem__(self, row):
        if row == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(row)


def test_a_loader_process_killed_by_the_kernel_is_reported(tmp_path):
    loader = make_loader(KilledAtThree(samples(tmp_path)), 1, 1, torch.device("cpu"))
    with (
        pytest.raises(UserError, match=r"a loader process was killed, probably by the kernel.*lower workers="),
        explain_failures(parse([])),
    ):
        list(loader)


def test_a_damaged_png_in_a_loader_process_ends_in_one_line(tmp_path):
    images = ImageDataset(samples(tmp_path))
    images.samples.paths[3].write_bytes(b"x")
    with pytest.raises(UserError) as failure, explain_failures(parse([])):
        list(make_loader(images, 2, 1, torch.device("cpu")))
    assert str(failure.value).startswith(f"{images.samples.paths[3]}: damaged PNG file; run: ")


class OpencvThreads(ImageDataset):
    """The label of an image is the number of threads that OpenCV uses."""

    def __getitem__(self, key):
        return super().__getitem__(key) | {"label": cv2.getNumThreads()}


def test_opencv_has_one_thread_in_loader_processes(tmp_path):
    """An OpenCV thread pool that exists before a fork can hang the child; with a process per core none is needed."""
    cv2.setNumThreads(3)
    found = [
        batch["label"].tolist() for batch in make_loader(OpencvThreads(samples(tmp_path)), 2, 2, torch.device("cpu"))
    ]
    assert found == [[1, 1]] * 3


def test_augmentation_depends_on_epoch_and_image_not_on_workers(tmp_path):
    paths = []
    for k in range(6):
        image = np.random.default_rng(k).integers(0, 256, (32, 32)).astype(np.uint8)
        write_png(image, tmp_path / f"{k}.png")
        paths.append(tmp_path / f"{k}.png")
    samples = Samples(
        list("abcdef"), paths, [np.zeros((0, 4))] * 6, np.zeros(6, int), np.ones((6, 4)), np.full((6, 2), 32)
    )
    dataset = make_train_set(parse([]), 0, samples)

    def epochs(which, workers):
        """The rows (epochs, 6) and images (epochs, 6, ...) in the batches of these epochs."""
        batches = EpochBatches(dataset, 2, which)
        found = list(make_loader(dataset, batches, workers, CPU))
        assert len(found) == len(batches) == 3 * len(which)
        rows, images = (torch.cat([batch[key] for batch in found]) for key in ("row", "image"))
        return rows.reshape(len(which), 6), images.reshape(len(which), 6, 32, 32)

    rows, images = epochs(range(2), 0)
    again_rows, again = epochs(range(2), 2)
    assert torch.equal(rows, again_rows)
    assert torch.equal(images, again)
    assert [sorted(row) for row in rows.tolist()] == [list(range(6))] * 2
    assert not torch.equal(rows[0], rows[1])
    assert not torch.equal(images[0][rows[0].argsort()], images[1][rows[1].argsort()])
    # a run resumed after the first epoch gets the same second epoch as an uninterrupted run
    later_rows, later = epochs(range(1, 2), 0)
    assert torch.equal(later_rows[0], rows[1])
    assert torch.equal(later[0], images[1])


@pytest.mark.parametrize(("n_images", "batch_size", "steps"), [(7, 2, 3), (6, 2, 3), (3, 8, 1)])
def test_batches_of_an_epoch_are_full_and_hold_no_image_twice(n_images, batch_size, steps):
    nothing, geometry = [np.zeros((0, 4))] * n_images, np.ones((n_images, 4))
    samples = Samples([""] * n_images, [], nothing, np.zeros(n_images, int), geometry, np.zeros((n_images, 2), int))
    batches = list(EpochBatches(ImageDataset(samples, seed=(1, 2)), batch_size, range(3)))
    assert len(batches) == 3 * steps
    assert {len(batch) for batch in batches} == {min(batch_size, n_images)}
    for epoch in range(3):
        keys = [key for batch in batches[epoch * steps : (epoch + 1) * steps] for key in batch]
        assert {number for number, _ in keys} == {epoch}
        assert len({row for _, row in keys}) == len(keys)


def sample(row, *boxes):
    image = torch.full((1, 8, 8), row, dtype=torch.uint8)
    return {"image": image, "boxes": torch.tensor(boxes).reshape(-1, 4), "label": 2, "row": row}


def test_boxes_are_padded_and_boxes_outside_are_masked():
    first, second = [0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]
    outside = [1.0, 0.5, 0.0, 0.2]
    batch = collate([sample(0, first, second), sample(1), sample(2, outside, second, first)])
    assert batch["image"].shape == (3, 1, 8, 8)
    assert batch["mask"].tolist() == [[True, True, False], [False] * 3, [False, True, True]]
    zeros = [0.0] * 4
    expected = torch.tensor([[first, second, zeros], [zeros] * 3, [zeros, second, first]])
    assert torch.equal(batch["boxes"], expected)
    assert (batch["label"].tolist(), batch["row"].tolist()) == ([2, 2, 2], [0, 1, 2])


def test_a_batch_without_boxes_has_room_for_one():
    batch = collate([sample(0), sample(1)])
    assert batch["boxes"].shape == (2, 1, 4)
    assert not batch["mask"].any()
