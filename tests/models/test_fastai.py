"""The model of the fast.ai post: its head, its loss, the measured scale."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.models.backbone import make_encoder
from rsna.models.fastai import MEASURED, FastaiModel, Settings
from rsna.models.registry import build_model, settings_of


def make(full_image_negatives=False, num_classes=2):
    torch.manual_seed(0)
    return FastaiModel(
        make_encoder("resnet18", "none"), 64, num_classes, Settings(full_image_negatives=full_image_negatives)
    )


def images(n=4):
    return torch.randint(0, 256, (n, 1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


TARGETS = {
    "boxes": torch.tensor([[[0.5, 0.5, 0.5, 0.25]], [[0.0, 0.0, 0.0, 0.0]]]),
    "mask": torch.tensor([[True], [False]]),
    "label": torch.tensor([1, 0]),
}


def test_the_preset_builds_the_posts_head():
    layers = [type(layer).__name__ for layer in make().head]
    assert layers == ["Flatten", "ReLU", "Dropout", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    model = build_model(parse(["preset=fastai", "weights=none", "size=64"], settings_of))
    assert isinstance(model, FastaiModel)
    assert (model.head[3].in_features, model.head[3].out_features) == (512 * 2 * 2, 256)
    assert model.head[7].out_features == 6
    assert [layer.p for layer in model.head if isinstance(layer, torch.nn.Dropout)] == [0.5, 0.5]
    assert model.full_image_negatives


def outputs_with(boxes):
    return {"boxes": torch.tensor(boxes), "logits": torch.tensor([[0.0, 2.0], [1.0, 0.0]])}


def test_loss_by_hand():
    """The true box of the first image is (16, 24, 48, 40) xyxy; the second image has none."""
    outputs = outputs_with([[16.0, 24.0, 48.0, 44.0], [0.0, 0.0, 64.0, 32.0]])
    entropy = float(cross_entropy(outputs["logits"], TARGETS["label"]))
    model = make().eval()
    losses = model.loss(outputs, TARGETS)
    assert float(losses["loss"]) == pytest.approx(4 / 4 + entropy)
    assert [float(losses[name]) for name in ("box", "class")] == pytest.approx([1, entropy])
    whole = make(full_image_negatives=True).eval()
    assert float(whole.loss(outputs, TARGETS)["loss"]) == pytest.approx((4 / 4 + 32 / 4) / 2 + entropy)


def test_the_scale_is_the_ratio_of_the_losses_over_the_first_batches():
    model = make().train()
    first = outputs_with([[16.0, 24.0, 48.0, 44.0], [0.0, 0.0, 64.0, 32.0]])
    entropy = float(cross_entropy(first["logits"], TARGETS["label"]))
    model.loss(first, TARGETS)
    assert float(model.scale) == pytest.approx(1 / entropy)
    second = outputs_with([[16.0, 24.0, 48.0, 52.0], [0.0, 0.0, 64.0, 32.0]])
    for _ in range(MEASURED - 1):
        model.loss(second, TARGETS)
    assert float(model.scale) == pytest.approx((1 + 3 * (MEASURED - 1)) / MEASURED / entropy, rel=1e-4)
    settled = float(model.scale)
    model.loss(first, TARGETS)
    assert float(model.scale) == settled
    twin = make()
    twin.load_state_dict(model.state_dict())
    assert float(twin.scale) == settled, "the scale goes with the checkpoint"


def test_the_scale_can_be_held():
    model = make().train()
    model.loss(outputs_with([[16.0, 24.0, 48.0, 44.0], [0.0, 0.0, 64.0, 32.0]]), TARGETS)
    model.hold_loss_weights()
    held = float(model.scale)
    model.loss(outputs_with([[16.0, 24.0, 48.0, 64.0], [0.0, 0.0, 64.0, 32.0]]), TARGETS)
    assert float(model.scale) == held != 1


def test_validation_does_not_touch_the_scale():
    model = make().eval()
    model.loss(outputs_with([[16.0, 24.0, 48.0, 44.0], [0.0, 0.0, 64.0, 32.0]]), TARGETS)
    assert float(model.scale) == 1


def test_a_batch_without_boxes_has_a_finite_loss():
    model = make().train()
    none = TARGETS | {"mask": torch.tensor([[False], [False]])}
    assert torch.isfinite(model.loss(outputs_with([[0.0, 0.0, 1.0, 1.0]] * 2), none)["loss"])
    assert torch.isfinite(model.scale)


def test_boxes_have_ordered_corners_in_the_unit_square():
    boxes, score, classes = make().decode(outputs_with([[48.0, 16.0, 16.0, 32.0], [0.0, 0.0, 64.0, 64.0]]))
    assert boxes[:, 0].tolist() == [[0.25, 0.25, 0.75, 0.5], [0.0, 0.0, 1.0, 1.0]]
    assert score[:, 0].tolist() == pytest.approx([0.881, 0.269], abs=1e-3)
    assert classes[:, 0].tolist() == pytest.approx([0.119, 0.731], abs=1e-3)


def test_priors_are_the_mean_box_and_the_class_rates():
    model = make(num_classes=3)
    model.init_priors([np.array([[0.3, 0.5, 0.2, 0.4]]), np.zeros((0, 4))], torch.tensor([0.3, 0.5, 0.2]))
    outputs = model.train()(images(8))
    assert (outputs["boxes"].mean(0) / 64).tolist() == pytest.approx([0.2, 0.3, 0.4, 0.7], abs=0.05)
    assert outputs["logits"].softmax(1).mean(0).tolist() == pytest.approx([0.3, 0.5, 0.2], abs=0.1)


def test_full_image_negatives_need_this_model():
    with pytest.raises(UserError, match="there is no setting 'full_image_negatives'"):
        parse(["full_image_negatives=true"], settings_of)
