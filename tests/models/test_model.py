"""The network, its weights and its views: shapes, what the loss pulls at, and boxes that survive a flip."""

import copy
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

from rsna.core.config import parse
from rsna.core.errors import UserError
from rsna.data.cache import write_png
from rsna.data.dataset import EpochBatches, ImageDataset, Samples, check_inside, make_loader, make_samples
from rsna.inference.predictor import predict_views, prediction_table
from rsna.inference.tta import TtaTransform, parse_transforms
from rsna.models.backbone import make_encoder
from rsna.models.checkpoint import load_checkpoint, save_checkpoint
from rsna.models.device import pick_device
from rsna.models.single_box import Settings, SingleBoxModel, place_centres
from rsna.training.loop import make_train_set, start_phase, train_epoch
from rsna.training.optim import make_optimizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.2))


def pictures(n=4, size=64):
    return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def targets(n=4):
    return {
        "box": torch.tensor([[0.3, 0.5, 0.2, 0.3]]).repeat(n, 1),
        "has_box": torch.arange(n) % 2 == 0,
        "label": torch.arange(n) % 3,
    }


@pytest.mark.parametrize("size", [64, 96, 160])
def test_map_follows_from_the_size(model, size):
    outputs = model.eval()(pictures(2, size))
    places = (size // 8) ** 2
    assert outputs["logits"].shape == (2, 3)
    assert outputs["place"].shape == (2, places)
    assert outputs["boxes"].shape == (2, places, 4)
    boxes, confidences, classes = model.decode(outputs)
    assert boxes.shape == (2, 1, 4)
    assert confidences.shape == (2, 1)
    assert classes.shape == (2, 3)
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_centres_run_along_rows():
    centres = place_centres(2, 4, CPU).reshape(-1, 2)
    assert centres[1].tolist() == [0.375, 0.25]
    assert centres[-1].tolist() == [0.875, 0.75]


def test_negatives_do_not_pull_at_the_box(model):
    outputs = {key: value.detach().requires_grad_() for key, value in model.train()(pictures()).items()}
    model.loss(outputs, targets()).backward()
    per_image = outputs["boxes"].grad.abs().sum((1, 2))
    assert (per_image[::2] > 0).all()
    assert (per_image[1::2] == 0).all()


def test_batch_without_boxes_has_a_finite_loss(model):
    without = targets() | {"has_box": torch.zeros(4, dtype=torch.bool), "box": torch.zeros(4, 4)}
    assert torch.isfinite(model.loss(model(pictures()), without))


def test_training_starts_at_mean_size_and_rates():
    torch.manual_seed(0)
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.0))
    model.start_at(torch.tensor([0.4, 0.5, 0.2, 0.3]), torch.tensor([0.3, 0.5, 0.2]))
    outputs = model.train()(pictures())
    assert outputs["boxes"][..., 2:].mean((0, 1)).tolist() == pytest.approx([0.2, 0.3], rel=0.2)
    assert outputs["logits"].softmax(1).mean(0).tolist() == pytest.approx([0.3, 0.5, 0.2], abs=0.1)


def test_it_learns_two_pictures():
    """A bright square left or right: after some steps the box of each is found."""
    torch.manual_seed(0)
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 2, Settings(dropout=0.0))
    images = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    images[0, 0, 20:44, 8:24] = 255
    images[1, 0, 30:50, 36:56] = 255
    wanted = torch.tensor([[16 / 64, 32 / 64, 16 / 64, 24 / 64], [46 / 64, 40 / 64, 20 / 64, 20 / 64]])
    batch = {"box": wanted, "has_box": torch.ones(2, dtype=torch.bool), "label": torch.tensor([0, 1])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.start_at(torch.tensor([0.5, 0.5, 0.3, 0.3]), torch.tensor([0.5, 0.5]))
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(model(images), batch).backward()
        optimizer.step()
    boxes, confidence, _ = model.decode(model(images))
    expected = np.array([[8, 20, 24, 44], [36, 30, 56, 50]]) / 64
    assert boxes[:, 0].detach().numpy() == pytest.approx(expected, abs=0.05)
    assert confidence[1] > 0.8 > 0.2 > confidence[0]


def test_groups_hold_every_parameter_once(model):
    optimizer = make_optimizer(model, [1.0], encoder_share=0.1, weight_decay=0.5)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (0.1, 0.5),
        (0.1, 0.0),
        (1.0, 0.5),
        (1.0, 0.0),
    }


# weights


def rgb_state(tmp_path):
    """A state dict like torchvision's: three input channels and a classifier."""
    torch.manual_seed(3)
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    return state


def test_weights_from_a_file_are_adapted_to_one_channel(tmp_path):
    state = rgb_state(tmp_path)
    encoder = make_encoder("resnet18", str(tmp_path / "resnet18.pth"))
    own = encoder.state_dict()
    assert torch.equal(own["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True))
    assert torch.equal(own["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    grey = torch.rand(1, 1, 64, 64)
    tripled = torch.nn.functional.conv2d(grey.repeat(1, 3, 1, 1), state["conv1.weight"], stride=2, padding=3)
    assert encoder.conv1(grey).detach().numpy() == pytest.approx(tripled.numpy(), abs=1e-5)


def test_weights_from_a_checkpoint_of_this_project(tmp_path, model):
    save_checkpoint({"made_from": {}, "model": model.state_dict()}, tmp_path / "best.pt")
    encoder = make_encoder("resnet18", str(tmp_path / "best.pt"))
    assert torch.equal(encoder.conv1.weight, model.encoder.conv1.weight)


def test_other_weights_are_refused(tmp_path):
    rgb_state(tmp_path)
    with pytest.raises(UserError, match="not weights of this encoder"):
        make_encoder("resnet34", str(tmp_path / "resnet18.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as plain tensors"):
        make_encoder("resnet18", str(tmp_path / "text.pth"))
    with pytest.raises(UserError, match=r"no such file.*weights=none"):
        make_encoder("resnet18", str(tmp_path / "absent.pth"))
    with pytest.raises(UserError, match="no such encoder"):
        make_encoder("resnet35", "none")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_does_not_run(tmp_path):
    torch.save({"model": Hostile(str(tmp_path / "owned"))}, tmp_path / "hostile.pt")
    with pytest.raises(UserError, match="plain tensors"):
        make_encoder("resnet18", str(tmp_path / "hostile.pt"))
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "hostile.pt", {}, 0)
    assert not (tmp_path / "owned").exists()


def test_weights_that_cannot_be_fetched_stop_the_run(monkeypatch):
    real = smp.encoders.get_encoder

    def offline(name, weights=None, **words):
        if weights:
            raise ConnectionError("no route to the hub")
        return real(name, weights=weights, **words)

    monkeypatch.setattr(smp.encoders, "get_encoder", offline)
    with pytest.raises(UserError, match=r"no route to the hub.*weights=<file>.*weights=none"):
        make_encoder("resnet34", "imagenet")


def test_checkpoint_of_other_settings_names_them(tmp_path):
    save_checkpoint({"made_from": {"size": 512, "lr": 0.1}, "fold": 1}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="size: 512 -> 64"):
        load_checkpoint(tmp_path / "last.pt", {"size": 64, "lr": 0.1}, 1)
    with pytest.raises(UserError, match="fold: 1 -> 0"):
        load_checkpoint(tmp_path / "last.pt", {"size": 512}, 0)


# views


class BrightSquare(nn.Module):
    """Stands in for a perfect network: returns the bounding box of the bright pixels."""

    def forward(self, images):
        return {"images": images}

    def decode(self, outputs):
        boxes = []
        for image in outputs["images"][:, 0]:
            rows, cols = torch.where(image > 127)
            edges = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
            boxes.append(torch.stack(edges) / image.shape[-1])
        return torch.stack(boxes)[:, None].float(), torch.ones(len(boxes), 1), torch.ones(len(boxes), 2)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize(("rows", "cols"), [(1024, 1024), (2048, 1536), (700, 1400)])
def test_every_view_finds_the_same_box(tmp_path, size, rows, cols, precision):
    """From a picture to the table in original pixels: within half a pixel for flips, a cached one or two for zooms."""
    scale = size / max(rows, cols)
    pad = [(size - round(cols * scale)) // 2, (size - round(rows * scale)) // 2]
    image = np.zeros((size, size), np.uint8)
    left, top, right, bottom = [int(size * share) for share in (0.3125, 0.375, 0.5625, 0.625)]
    image[top:bottom, left:right] = 255
    write_png(image, tmp_path / "a.png")
    geometry = np.array([[scale, scale, *pad]])
    samples = Samples(
        ["a"], [tmp_path / "a.png"], np.full((1, 4), np.nan), np.zeros(1, int), geometry, np.array([[rows, cols]])
    )
    views = parse_transforms("plain,hflip", "1.0,0.9,1.2")
    assert views[0] == TtaTransform()
    assert len(views) == 6
    loader = make_loader(ImageDataset(samples), 1, 0, CPU)
    expected = np.array(
        [(left - pad[0]) / scale, (top - pad[1]) / scale, (right - left) / scale, (bottom - top) / scale]
    )
    found_by_view = predict_views(BrightSquare(), loader, views, CPU, precision)
    for view, (boxes, confidence, _) in zip(views, found_by_view, strict=True):
        found = prediction_table(samples, boxes, confidence, size)[["x", "y", "width", "height"]].to_numpy()[0]
        tolerance = 0.5 if view.scale == 1 else 1.5 / scale
        assert found == pytest.approx(expected, abs=tolerance), view


def test_box_outside_the_image_leaves_an_empty_row():
    samples = Samples(
        ["a", "b"],
        [],
        np.full((2, 4), np.nan),
        np.zeros(2, int),
        np.array([[0.5, 0.5, 0, 16]] * 2),
        np.array([[64, 128]] * 2),
    )
    boxes = np.array([[[0.1, 0.0, 0.5, 0.2]], [[0.1, 0.2, 0.5, 0.5]]])  # the first lies in the black bar above
    table = prediction_table(samples, boxes, np.array([[0.9], [0.8]]), 64)
    assert table["patientId"].tolist() == ["a", "b"]
    assert table["confidence"].isna().tolist() == [True, False]
    assert table.iloc[1][["x", "y", "width", "height"]].tolist() == pytest.approx([12.8, 0, 51.2, 32])


def test_device_that_is_not_there():
    with pytest.raises(UserError, match="device=cuda:77"):
        pick_device("cuda:77")


def test_augmentation_depends_on_epoch_and_image_not_on_workers(tmp_path):
    paths = []
    for k in range(6):
        image = np.random.default_rng(k).integers(0, 256, (32, 32)).astype(np.uint8)
        write_png(image, tmp_path / f"{k}.png")
        paths.append(tmp_path / f"{k}.png")
    samples = Samples(
        list("abcdef"), paths, np.full((6, 4), np.nan), np.zeros(6, int), np.ones((6, 4)), np.full((6, 2), 32)
    )
    dataset = make_train_set(parse([]), 0, samples)

    def epochs(which, workers):
        """Rows (epochs, 6) and images (epochs, 6, ...) as the batches of these epochs bring them."""
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
    # who goes on after the first epoch sees what the second one of a straight run sees
    later_rows, later = epochs(range(1, 2), 0)
    assert torch.equal(later_rows[0], rows[1])
    assert torch.equal(later[0], images[1])


@pytest.mark.parametrize(("n_images", "batch_size", "steps"), [(7, 2, 3), (6, 2, 3), (3, 8, 1)])
def test_batches_of_an_epoch_are_full_and_hold_no_image_twice(n_images, batch_size, steps):
    nothing = np.full((n_images, 4), np.nan)
    samples = Samples([""] * n_images, [], nothing, np.zeros(n_images, int), nothing, np.zeros((n_images, 2), int))
    batches = list(EpochBatches(ImageDataset(samples, seed=(1, 2)), batch_size, range(3)))
    assert len(batches) == 3 * steps
    assert {len(batch) for batch in batches} == {min(batch_size, n_images)}
    for epoch in range(3):
        keys = [key for batch in batches[epoch * steps : (epoch + 1) * steps] for key in batch]
        assert {number for number, _ in keys} == {epoch}
        assert len({row for _, row in keys}) == len(keys)


def test_tables_of_samples_join_by_id():
    index = pd.DataFrame(
        {"patientId": ["b", "a"], "rows": 10, "cols": 20, "scale_x": 2.0, "scale_y": 2.0, "pad_x": 0, "pad_y": 10}
    )
    truth = pd.DataFrame([("b", 1, 1, 2, 2), ("b", 0, 0, 4, 4)], columns=["patientId", "x", "y", "width", "height"])
    samples = make_samples(pd.Series(["a", "b"]), index, Path("c"), truth, [0, 2])
    assert np.isnan(samples.boxes_xyxy[0]).all()
    assert samples.boxes_xyxy[1].tolist() == [0, 10, 8, 18]
    with pytest.raises(UserError, match=r"1 images are not in it, first \.\./z: is their DICOM in input"):
        make_samples(pd.Series(["a", "../z"]), index, Path("c"), truth)


def test_a_checkpoint_has_the_same_bytes_whether_its_run_was_stopped_or_not(tmp_path):
    """Rows that come from a file share no strings and tuples with those of this process."""
    rows = [{"epoch": epoch, "phase": "".join(["a", "ll"])} for epoch in (1, 2)]
    groups = [{"betas": (0.9, 0.99), "phase": "all"}] * 2
    save_checkpoint({"made_from": {}, "fold": 0, "history": rows[:1], "groups": groups}, tmp_path / "half.pt")
    half = load_checkpoint(tmp_path / "half.pt", {}, 0)
    save_checkpoint({"made_from": {}, "fold": 0, "history": rows, "groups": groups}, tmp_path / "straight.pt")
    half["history"].append(rows[1])
    save_checkpoint(half, tmp_path / "stopped.pt")
    assert (tmp_path / "straight.pt").read_bytes() == (tmp_path / "stopped.pt").read_bytes()


@pytest.mark.parametrize(
    ("right", "bottom", "leaves"), [(20, 10, False), (21, 11, False), (22, 10, True), (5, 12, True)]
)
def test_a_box_that_ends_beyond_its_image_is_named(right, bottom, leaves):
    """By more than the pixel that a count from 1 would give."""
    images = pd.DataFrame({"patientId": ["a", "b"], "rows": [1000, 10], "cols": [1000, 20]})
    truth = pd.DataFrame([("b", 1, 1, right - 1, bottom - 1)], columns=["patientId", "x", "y", "width", "height"])
    with pytest.raises(UserError, match=r"patientId b: the box ends at .*20 x 10") if leaves else nullcontext():
        check_inside(truth, images)


def infinite_slope(loss, outputs):
    """The same loss, whose gradient is not finite."""
    return loss + (0 * outputs["logits"].sum()).sqrt()


@pytest.mark.parametrize("clip", [5.0, 0.0])
@pytest.mark.parametrize("spoil", [lambda loss, _: loss * np.nan, infinite_slope])
def test_a_loss_or_gradient_that_is_not_finite_stops_with_the_batch_and_its_images(
    tmp_path, model, monkeypatch, spoil, clip
):
    for name in "abcd":
        write_png(np.full((64, 64), 90, np.uint8), tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    boxes = np.array([[8.0, 8, 40, 40]] * 4)
    samples = Samples(list("abcd"), paths, boxes, np.zeros(4, int), np.ones((4, 4)), np.full((4, 2), 64))
    cfg = parse(["size=64", "batch_size=2", "weights=none", "encoder=resnet18"])
    train = make_train_set(cfg, 0, samples)
    loader = make_loader(train, EpochBatches(train, 2, range(1)), 0, CPU)
    order = [name for batch in loader for name in np.array(samples.ids)[batch["row"]]]
    model = copy.deepcopy(model)
    run = start_phase(cfg, model, 4, cfg.phase_list[0])
    bad = order.index("c") // 2
    pair = order[2 * bad : 2 * bad + 2]
    loss = model.loss

    def spoiled(outputs, targets):
        own = loss(outputs, targets)
        return spoil(own, outputs) if 2 in targets["row"].tolist() else own

    monkeypatch.setattr(model, "loss", spoiled)
    message = f"batch {bad + 1}: the loss or its gradient is not finite; images {pair[0]}, {pair[1]}"
    with pytest.raises(UserError, match=message):
        train_epoch(run, loader, samples.ids, "fold 0 epoch 1/1", clip)
