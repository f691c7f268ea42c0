"""The default model: shapes, gradients of the loss, initialisation; it learns."""

import numpy as np
import pytest
import torch

from rsna.models.backbone import make_encoder
from rsna.models.device import mixed_precision
from rsna.models.pyramid import location_centres
from rsna.models.single_box import Settings, SingleBoxModel

CPU = torch.device("cpu")
BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.2))


def images(n=4, size=64):
    return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def targets(n=4):
    return {
        "boxes": torch.tensor([[[0.3, 0.5, 0.2, 0.3]]]).repeat(n, 1, 1),
        "mask": (torch.arange(n) % 2 == 0)[:, None],
        "label": torch.arange(n) % 3,
    }


@pytest.mark.parametrize("size", [64, 96, 160])
def test_the_map_has_stride_8(model, size):
    outputs = model.eval()(images(2, size))
    locations = (size // 8) ** 2
    assert outputs["logits"].shape == (2, 3)
    assert outputs["objectness"].shape == (2, locations)
    assert outputs["boxes"].shape == (2, locations, 4)
    boxes, scores, classes = model.decode(outputs)
    assert boxes.shape == (2, 1, 4)
    assert scores.shape == (2, 1)
    assert classes.shape == (2, 3)
    assert classes.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_centres_run_along_rows():
    centres = location_centres(2, 4, CPU).reshape(-1, 2)
    assert centres[1].tolist() == [0.375, 0.25]
    assert centres[-1].tolist() == [0.875, 0.75]


def test_negatives_give_the_box_no_gradient(model):
    outputs = {key: value.detach().requires_grad_() for key, value in model.train()(images()).items()}
    model.loss(outputs, targets())["loss"].backward()
    per_image = outputs["boxes"].grad.abs().sum((1, 2))
    assert (per_image[::2] > 0).all()
    assert (per_image[1::2] == 0).all()


def test_batch_without_boxes_has_a_finite_loss(model):
    without = targets() | {"mask": torch.zeros(4, 1, dtype=torch.bool), "boxes": torch.zeros(4, 1, 4)}
    losses = model.loss(model(images()), without)
    assert all(torch.isfinite(value) for value in losses.values())
    assert losses["box"] == losses["location"] == 0


def test_the_loss_is_the_weighted_sum_of_its_parts():
    torch.manual_seed(0)
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.0, box_weight=2.0))
    losses = model.loss(model(images()), targets())
    parts = {name: float(value.detach()) for name, value in losses.items()}
    expected = parts["class"] + parts["image"] + 2 * (parts["box"] + parts["location"] / 2)
    assert parts["loss"] == pytest.approx(expected, rel=1e-5)
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]


def test_only_the_first_box_counts(model):
    """The largest box of an image is first; further boxes change nothing."""
    outputs = model.eval()(images())
    more = torch.cat([targets()["boxes"], torch.full((4, 2, 4), 0.7)], dim=1)
    mask = torch.cat([targets()["mask"], torch.ones(4, 2, dtype=torch.bool)], dim=1)
    alone = model.loss(outputs, targets())
    assert model.loss(outputs, targets() | {"boxes": more, "mask": mask}) == alone


def test_priors_are_the_size_of_the_mean_box_and_the_class_rates():
    torch.manual_seed(0)
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.0))
    boxes = [
        np.array([[0.3, 0.5, 0.1, 0.2], [0.8, 0.8, 0.05, 0.05]]),
        np.zeros((0, 4)),
        np.array([[0.5, 0.5, 0.3, 0.4]]),
    ]
    model.init_priors(boxes, torch.tensor([0.3, 0.5, 0.2]))
    outputs = model.train()(images())
    assert outputs["boxes"][..., 2:].mean((0, 1)).tolist() == pytest.approx([0.2, 0.3], rel=0.2)
    assert outputs["logits"].softmax(1).mean(0).tolist() == pytest.approx([0.3, 0.5, 0.2], abs=0.1)


def test_it_learns_two_images():
    """A bright square left or right: after some steps the box of each is found."""
    torch.manual_seed(0)
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 2, Settings(dropout=0.0))
    squares = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    squares[0, 0, 20:44, 8:24] = 255
    squares[1, 0, 30:50, 36:56] = 255
    boxes = torch.tensor([[16 / 64, 32 / 64, 16 / 64, 24 / 64], [46 / 64, 40 / 64, 20 / 64, 20 / 64]])
    batch = {"boxes": boxes[:, None], "mask": torch.ones(2, 1, dtype=torch.bool), "label": torch.tensor([0, 1])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.init_priors([np.array([[0.5, 0.5, 0.3, 0.3]])], torch.tensor([0.5, 0.5]))
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(model(squares), batch)["loss"].backward()
        optimizer.step()
    found, score, _ = model.decode(model(squares))
    expected = np.array([[8, 20, 24, 44], [36, 30, 56, 50]]) / 64
    assert found[:, 0].detach().numpy() == pytest.approx(expected, abs=0.05)
    assert score[1] > 0.8 > 0.2 > score[0]


@pytest.mark.parametrize("size", [96, 160, 640])
def test_centres_keep_full_precision_in_a_mixed_network(size):
    """bfloat16 cannot hold 11.5 / 12 or 79.5 / 80, so the centres must stay in float32."""
    torch.manual_seed(0)
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.0)).eval()
    noise = torch.randint(0, 256, (1, 1, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        exact = model(noise)
        with mixed_precision(CPU, BF16):
            mixed = model(noise)
    assert {value.dtype for value in mixed.values()} == {F32}
    assert torch.equal(mixed["centres"], exact["centres"])
    assert not torch.equal(mixed["boxes"], exact["boxes"]), "the network did not run in bfloat16"
    assert mixed["boxes"].numpy() == pytest.approx(exact["boxes"].numpy(), abs=0.05)
