"""Training steps: their precision, and the errors that stop them."""

import copy

import numpy as np
import pytest
import torch

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.data.dataset import Samples
from rsna.data.letterbox import write_png
from rsna.data.loader import EpochBatches, make_loader
from rsna.models.backbone import make_encoder
from rsna.models.single_box import Settings, SingleBoxModel
from rsna.training import loop
from rsna.training.fold import make_train_set
from rsna.training.loop import start_phase, train_epoch, train_step
from rsna.training.resume import rank

CPU = torch.device("cpu")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.2))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", F32), ("bfloat16", BF16)])
def test_a_step_runs_in_the_requested_precision(precision, dtype):
    """The convolutions use it; weights, gradients and the loss stay in float32."""
    torch.manual_seed(0)
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.0))
    seen = []
    model.fpn_conv[0].register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    cfg = parse([f"precision={precision}", "weights=none"])
    run = start_phase(cfg, model, 80, cfg.phase_list[0])
    batch = {
        "image": torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8),
        "boxes": torch.full((2, 1, 4), 0.4),
        "mask": torch.tensor([[True], [False]]),
        "label": torch.tensor([2, 0]),
    }
    losses = train_step(run, batch, grad_clip=5.0)
    assert seen == [dtype]
    assert {loss.dtype for loss in losses.values()} == {F32}
    assert {value.dtype for value in [*model.parameters(), *(p.grad for p in model.parameters())]} == {F32}


@pytest.mark.parametrize(("before", "after"), [("bfloat16", F16), ("auto", F16), ("float32", BF16)])
def test_training_resumes_in_another_precision(monkeypatch, before, after):
    """For example because `auto` means another precision on the machine that resumes it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    cfg = parse([f"precision={before}", "weights=none"])
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.0))
    state = start_phase(cfg, model, 80, cfg.phase_list[0]).state()
    monkeypatch.setattr(loop, "pick_precision", lambda *_: after)
    run = start_phase(cfg, model, 80, cfg.phase_list[0])
    run.load(state)
    assert run.dtype == after
    assert run.state()["dtype"] == str(after).removeprefix("torch.")
    assert run.scaler.is_enabled() == (after == F16)


def infinite_slope(loss, outputs):
    """The same loss, but with an infinite gradient."""
    return loss + (0 * outputs["logits"].sum()).sqrt()


@pytest.mark.parametrize("grad_clip", [5.0, 0.0])
@pytest.mark.parametrize("spoil", [lambda loss, _: loss * np.nan, infinite_slope])
def test_a_loss_or_gradient_that_is_not_finite_stops_with_the_batch_and_its_images(
    tmp_path, model, monkeypatch, spoil, grad_clip
):
    for name in "abcd":
        write_png(np.full((64, 64), 90, np.uint8), tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    boxes = [np.array([[8.0, 8, 40, 40]])] * 4
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
        return own | {"loss": spoil(own["loss"], outputs)} if 2 in targets["row"].tolist() else own

    monkeypatch.setattr(model, "loss", spoiled)
    message = f"batch {bad + 1}: the loss or its gradient is not finite; images {pair[0]}, {pair[1]}"
    with pytest.raises(UserError, match=message):
        train_epoch(run, loader, samples.ids, "fold 0 epoch 1/1", grad_clip)


def test_the_best_epoch_has_the_highest_map_and_without_boxes_the_lowest_loss():
    nan = float("nan")
    epochs = [(0.1, 2.0), (0.2, 3.0), (0.2, 2.5), (0.0, 1.0)]
    assert max(epochs, key=lambda epoch: rank({"mAP": epoch[0], "valid_loss": epoch[1]})) == (0.2, 2.5)
    assert max([(nan, 2.0), (nan, 1.0), (nan, 3.0)], key=lambda e: rank({"mAP": e[0], "valid_loss": e[1]}))[1] == 1.0
