"""The image-level classifier: no boxes, class probabilities, and the fusion with runs that have boxes."""

import pytest
import torch

from rsna.core.command_line import parse
from rsna.models.registry import build_model, settings_of

WORDS = ["model=classifier", "size=64", "encoder=resnet18", "weights=none"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(parse(WORDS, settings_of)).eval()


def test_it_returns_no_boxes_and_class_probabilities(model):
    boxes, scores, classes = model.decode(model(torch.zeros(2, 1, 64, 64, dtype=torch.uint8)))
    assert (boxes.shape, scores.shape, classes.shape) == ((2, 0, 4), (2, 0), (2, 3))
    assert torch.allclose(classes.sum(1), torch.ones(2))


def test_its_loss_is_the_cross_entropy_by_hand(model):
    outputs = {"logits": torch.tensor([[0.0, 0.0, 1.0]])}
    losses = model.loss(outputs, {"label": torch.tensor([2])})
    expected = -torch.log(torch.e ** torch.tensor(1.0) / (2 + torch.e))
    assert losses["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert losses["class"] == losses["loss"]


def test_untrained_it_predicts_the_class_rates(model):
    rates = torch.tensor([0.2, 0.5, 0.3])
    model.init_priors([], rates)
    with torch.no_grad():
        model.classifier.weight.zero_()
        found = model.decode(model(torch.zeros(1, 1, 64, 64, dtype=torch.uint8)))[2]
    assert torch.allclose(found[0], rates, atol=1e-6)
