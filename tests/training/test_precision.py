"""Mixed precision: who gets it, and that it blurs numbers only where it may."""

import pytest
import torch

from rsna.core.config import parse
from rsna.core.errors import UserError
from rsna.models.backbone import make_encoder
from rsna.models.device import mixed_precision, pick_precision
from rsna.models.single_box import Settings, SingleBoxModel
from rsna.training import loop as engine
from rsna.training.loop import start_phase, train_step

CPU = torch.device("cpu")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("found", "expected"),
    [({}, F32), ({"avx512_f": True}, F32), ({"avx512_bf16": True}, BF16), ({"amx_bf16": True}, BF16)],
)
def test_auto_takes_what_the_processor_has_instructions_for(monkeypatch, found, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert pick_precision("auto", CPU) == expected
    assert pick_precision("float32", CPU) == F32
    assert pick_precision("bfloat16", CPU) == BF16


def test_auto_is_float32_where_pytorch_cannot_say(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert pick_precision("auto", CPU) == F32


@pytest.mark.parametrize(("supported", "expected"), [(True, BF16), (False, F16)])
def test_auto_on_a_gpu(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert pick_precision("auto", torch.device("cuda")) == expected
    assert pick_precision("float32", torch.device("cuda")) == F32


def test_a_word_that_is_none_of_them():
    with pytest.raises(UserError, match="precision=half: auto, float32 or bfloat16"):
        parse(["precision=half"])


@pytest.mark.parametrize("size", [96, 160, 640])
def test_places_are_where_they_are(size):
    """8 bits hold neither 11.5 / 12 nor 79.5 / 80: centres must not take the network's precision."""
    torch.manual_seed(0)
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.0)).eval()
    images = torch.randint(0, 256, (1, 1, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        exact = model(images)
        with mixed_precision(CPU, BF16):
            mixed = model(images)
    assert {value.dtype for value in mixed.values()} == {F32}
    assert torch.equal(mixed["centres"], exact["centres"])
    assert not torch.equal(mixed["boxes"], exact["boxes"]), "the network did not run in bfloat16"
    assert mixed["boxes"].numpy() == pytest.approx(exact["boxes"].numpy(), abs=0.05)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", F32), ("bfloat16", BF16)])
def test_a_step_runs_in_the_precision_that_is_asked_for(precision, dtype):
    """The convolutions do; weights, gradients and the loss stay in float32."""
    torch.manual_seed(0)
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.0))
    seen = []
    model.mix[0].register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    cfg = parse([f"precision={precision}", "weights=none"])
    run = start_phase(cfg, model, 80, cfg.phase_list[0])
    batch = {
        "image": torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8),
        "box": torch.full((2, 4), 0.4),
        "has_box": torch.tensor([True, False]),
        "label": torch.tensor([2, 0]),
    }
    loss = train_step(run, batch, grad_clip=5.0)
    assert seen == [dtype]
    assert loss.dtype == F32
    assert {value.dtype for value in [*model.parameters(), *(p.grad for p in model.parameters())]} == {F32}


@pytest.mark.parametrize(("before", "after"), [("bfloat16", F16), ("auto", F16), ("float32", BF16)])
def test_a_training_goes_on_in_another_precision(monkeypatch, before, after):
    """As where `auto` means something else on the machine that goes on."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    cfg = parse([f"precision={before}", "weights=none"])
    model = SingleBoxModel(make_encoder("resnet18", "none"), 64, 3, Settings(dropout=0.0))
    state = start_phase(cfg, model, 80, cfg.phase_list[0]).state()
    monkeypatch.setattr(engine, "pick_precision", lambda *_: after)
    run = start_phase(cfg, model, 80, cfg.phase_list[0])
    run.load(state)
    assert run.computed_in == str(after).removeprefix("torch.")
    assert run.scaler.is_enabled() == (after == F16)
