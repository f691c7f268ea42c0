"""The detector: assignment, losses, NMS with box voting; it learns several boxes per image."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_convert, nms

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.models.detector import LEAST_HEAT, MAX_BOXES, assign, paired_iou, select_boxes
from rsna.models.pyramid import location_centres
from rsna.models.registry import build_model, settings_of

WORDS = ["model=detector", "size=64", "encoder=resnet18", "weights=none", "fpn_channels=32"]
CPU = torch.device("cpu")


def centres(side):
    """Centres (L, 2) of the locations of a square map."""
    return location_centres(side, side, CPU).reshape(-1, 2)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model(parse(WORDS, settings_of))
    model.init_priors([np.array([[0.3, 0.5, 0.2, 0.3]])], torch.tensor([0.3, 0.3, 0.4]))
    return model


def squares(n=16):
    """Dark images with two bright squares each, and every fourth image without any."""
    rng = np.random.default_rng(0)
    images, boxes = torch.zeros(n, 1, 64, 64, dtype=torch.uint8), torch.zeros(n, 2, 4)
    for k in range(n):
        for b, left in enumerate((4, 36) if k % 4 else ()):
            x, y = left + rng.integers(0, 8), rng.integers(4, 44)
            images[k, 0, y : y + 16, x : x + 16] = 220
            boxes[k, b] = torch.tensor([x + 8, y + 8, 16, 16]) / 64
    mask = boxes[..., 2] > 0
    return images, {"boxes": boxes, "mask": mask, "label": torch.where(mask[:, 0], 2, 0)}


def test_shapes(model):
    outputs = model(torch.zeros(2, 1, 64, 64, dtype=torch.uint8))
    n_locations = 8 * 8
    assert outputs["objectness"].shape == (2, n_locations)
    assert outputs["boxes"].shape == (2, n_locations, 4)
    boxes, scores, classes = model.decode(outputs)
    assert (boxes.shape, scores.shape, classes.shape) == ((2, MAX_BOXES, 4), (2, MAX_BOXES), (2, 3))


def test_untrained_it_predicts_hardly_any_boxes(model):
    outputs = model.eval()(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    assert outputs["objectness"].sigmoid().max() < 0.05


def test_it_learns_both_boxes_of_an_image():
    torch.manual_seed(0)
    model = build_model(parse(WORDS, settings_of))
    images, targets = squares()
    found = [boxes[mask].numpy() for boxes, mask in zip(targets["boxes"], targets["mask"], strict=True)]
    model.init_priors(found, torch.tensor([0.25, 0.0, 0.75]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        loss = model.loss(model(images), targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    boxes, scores, _ = model.decode(model(images))
    true = box_convert(targets["boxes"], "cxcywh", "xyxy")
    for k in range(len(images)):
        if k % 4 == 0:
            assert scores[k, 0] < 0.3
            continue
        overlap = torch.stack([paired_iou(boxes[k, :2], box) for box in true[k]])
        assert (overlap.amax(1) > 0.6).all(), f"both boxes of image {k} are among the best two"
        assert scores[k, 1] > 2 * scores[k, 2]


def test_images_without_a_box_give_a_finite_loss_and_train_the_objectness(model):
    images, targets = squares(4)
    empty = {**targets, "boxes": targets["boxes"] * 0, "mask": targets["mask"] & False}
    losses = model.loss(model(images), empty)
    assert torch.isfinite(losses["loss"])
    assert losses["box"] == 0
    assert losses["objectness"] > 0


def test_padding_does_not_change_the_loss(model):
    images, targets = squares(4)
    model.eval()
    outputs = model(images)
    padded = {**targets, "boxes": torch.cat([targets["boxes"], torch.zeros(4, 3, 4)], 1)}
    padded["mask"] = torch.cat([targets["mask"], torch.zeros(4, 3, dtype=torch.bool)], 1)
    expected = model.loss(outputs, targets)
    assert {key: value.item() for key, value in model.loss(outputs, padded).items()} == pytest.approx(
        {key: value.item() for key, value in expected.items()}
    )


@given(st.lists(st.tuples(*[st.floats(0.1, 0.9)] * 2, *[st.floats(0.01, 0.8)] * 2), min_size=1, max_size=4))
@settings(max_examples=50)
def test_every_box_has_a_location_of_full_heat_and_padding_has_none(boxes_cxcywh):
    boxes = torch.tensor([[*boxes_cxcywh, (0.0, 0.0, 0.0, 0.0)]])
    mask = torch.tensor([[True] * len(boxes_cxcywh) + [False]])
    heat, own = assign(boxes, mask, centres(8))
    assert ((heat >= 0) & (heat <= 1)).all()
    for box in boxes[0, :-1]:
        alone, _ = assign(box[None, None], mask[:, :1], centres(8))
        nearest = (centres(8) - box[:2]).div(box[2:]).square().sum(1).argmin()
        assert alone[0, nearest] == 1
        assert heat[0, nearest] == 1, "another box takes no heat away"
    assert (own[0].unsqueeze(1) == boxes[0, :-1]).all(-1).any(-1).all(), "padding is nobody's box"
    nothing, _ = assign(boxes, mask & False, centres(8))
    assert (nothing == 0).all()


def test_a_location_belongs_to_the_box_that_it_is_nearest_to_relative_to_its_size():
    boxes = torch.tensor([[[0.25, 0.5, 0.3, 0.4], [0.75, 0.5, 0.3, 0.4]]])
    heat, own = assign(boxes, torch.ones(1, 2, dtype=torch.bool), centres(16))
    left = centres(16)[:, 0] < 0.5
    warm = heat[0] > LEAST_HEAT
    assert (own[0, left & warm] == boxes[0, 0]).all()
    assert (own[0, ~left & warm] == boxes[0, 1]).all()
    assert warm.sum() > 8


def test_the_objectness_learns_how_well_the_box_fits(model):
    """Of two equal objectness logits, the loss raises the one whose box fits and lowers the other."""
    targets = {
        "boxes": torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]),
        "mask": torch.tensor([[True]]),
        "label": torch.tensor([2]),
    }
    for box, sign in (([0.5, 0.5, 0.4, 0.4], -1), ([0.5, 0.5, 0.1, 0.1], 1)):
        logits = torch.zeros(1, 1, requires_grad=True)
        outputs = {"objectness": logits, "boxes": torch.tensor([[box]]), "centres": torch.tensor([[0.5, 0.5]])}
        model.loss({**outputs, "logits": torch.zeros(1, 3)}, targets)["loss"].backward()
        assert torch.sign(logits.grad).item() == sign


@given(st.integers(0, 10_000), st.floats(0.05, 0.5))
@settings(max_examples=50)
def test_the_kept_boxes_are_those_of_torchvisions_nms(seed, iou):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.7, (1, 30, 2))
    boxes = torch.tensor(np.concatenate([low, low + rng.uniform(0.05, 0.3, (1, 30, 2))], axis=2))
    scores = torch.tensor(rng.uniform(0.01, 1, (1, 30)))
    kept = nms(boxes[0], scores[0], iou)[:MAX_BOXES]
    found = select_boxes(boxes, scores, iou)[1][0]
    assert torch.equal(found[: len(kept)], scores[0][kept])
    assert (found[len(kept) :] == 0).all()


def test_voting_moves_a_box_to_the_weighted_mean_of_those_that_overlap_it():
    boxes = torch.tensor([[[0.0, 0.0, 0.4, 0.4], [0.1, 0.0, 0.5, 0.4], [0.6, 0.6, 0.8, 0.8]]])
    found, scores = select_boxes(boxes, torch.tensor([[0.8, 0.4, 0.5]]), 0.1)
    assert found[0, 0].tolist() == pytest.approx([0.02, 0.0, 0.42, 0.4])
    assert found[0, 1].tolist() == pytest.approx([0.6, 0.6, 0.8, 0.8])
    assert scores[0, :3].tolist() == pytest.approx([0.8, 0.5, 0.0])
    assert (found[0, 2:] == 0).all()


def test_a_width_that_group_norm_cannot_divide_ends_in_one_line():
    cfg = parse([*WORDS[:-1], "fpn_channels=40"], settings_of)
    with pytest.raises(UserError, match="fpn_channels=40: must be a multiple of 16"):
        build_model(cfg)
