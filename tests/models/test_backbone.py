"""Initial weights of the encoder: adapted to one channel, refused if they do not fit, never run as code."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision

from rsna.core.errors import UserError
from rsna.models.backbone import make_encoder
from rsna.models.checkpoint import save_checkpoint
from rsna.models.single_box import Settings, SingleBoxModel


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
    image = torch.rand(1, 1, 64, 64)
    tripled = torch.nn.functional.conv2d(image.repeat(1, 3, 1, 1), state["conv1.weight"], stride=2, padding=3)
    assert encoder.conv1(image).detach().numpy() == pytest.approx(tripled.numpy(), abs=1e-5)


def test_weights_from_a_checkpoint_of_this_project(tmp_path):
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings())
    save_checkpoint({"manifest": {}, "model": model.state_dict()}, tmp_path / "best.pt")
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


def test_weights_that_cannot_be_fetched_stop_the_run(monkeypatch):
    real = smp.encoders.get_encoder

    def offline(name, weights=None, **words):
        if weights:
            raise ConnectionError("no route to the hub")
        return real(name, weights=weights, **words)

    monkeypatch.setattr(smp.encoders, "get_encoder", offline)
    with pytest.raises(UserError, match=r"no route to the hub.*weights=<file>.*weights=none"):
        make_encoder("resnet34", "imagenet")
