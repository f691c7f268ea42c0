"""What a phase freezes, the learning rates of each part, and schedules."""

import numpy as np
import pytest
import torch
from torch import nn

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.phases import SCHEDULES, Phase
from rsna.models.backbone import make_encoder
from rsna.models.registry import settings_of
from rsna.models.single_box import Settings, SingleBoxModel
from rsna.training.loop import start_phase
from rsna.training.optim import freeze, lrs_by_stage, make_optimizer, make_schedule, one_cycle_legacy, train_mode


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SingleBoxModel(make_encoder("resnet18", "none"), 64, 2, Settings(dropout=0.0))


def trained_stages(model):
    return {
        name.split(".")[1] if name.startswith("encoder.") else "head"
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def test_a_part_freezes_the_stages_before_it(model):
    for part, expected in (
        ("head", {"head"}),
        ("last2", {"head", "layer3", "layer4"}),
        ("all", {"head", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ):
        freeze(model, Phase(part, 1, (1.0,), "cosine"))
        assert trained_stages(model) == expected


def test_frozen_stages_keep_weights_and_statistics(model):
    phase = Phase("last1", 1, (0.1,), "constant")
    freeze(model, phase)
    train_mode(model, phase.first_stage)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = make_optimizer(model, phase.lrs, 1.0, 0.0)
    images = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    outputs = model(images)
    sum(value.square().mean() for key, value in outputs.items() if key != "centres").backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key in before if key.startswith("encoder.") and not key.startswith("encoder.layer4")}
    assert changed & frozen == set()
    assert {"encoder.layer4.0.conv1.weight", "encoder.layer4.0.bn1.running_mean", "objectness.weight"} <= changed


def test_a_pretrained_encoder_keeps_its_batch_statistics_while_it_trains(model):
    phase = Phase("all", 1, (0.1,), "constant")
    freeze(model, phase)
    train_mode(model, phase.first_stage, freeze_bn=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = make_optimizer(model, phase.lrs, 1.0, 0.0)
    outputs = model(torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8))
    sum(value.square().mean() for key, value in outputs.items() if key != "centres").backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    kept = {key for key in before if key.startswith("encoder.") and "running" in key}
    assert kept
    assert not changed & kept
    assert {"encoder.conv1.weight", "encoder.bn1.weight", "encoder.layer4.0.bn1.bias"} <= changed
    assert any("running" in key for key in changed), "those of the head are its own"


@pytest.mark.parametrize(
    ("words", "frozen"),
    [("weights=none", False), ("weights=imagenet", True), ("weights=imagenet freeze_bn=false", False)],
)
def test_only_a_pretrained_encoder_has_statistics_to_keep(model, words, frozen):
    cfg = parse(words.split(), settings_of)
    assert start_phase(cfg, model, 80, cfg.phase_list[0]).freeze_bn is frozen


def test_learning_rates_from_input_to_head(model):
    assert lrs_by_stage([1.0], 0.1) == [0.1] * 5 + [1.0]
    assert lrs_by_stage([1.0, 2.0], 0.1) == [1.0] * 5 + [2.0]
    assert lrs_by_stage([1.0, 2.0, 3.0], 0.1) == [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]
    assert lrs_by_stage([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.1) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    optimizer = make_optimizer(model, [1.0, 2.0, 3.0], 0.1, 0.5)
    lr_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert lr_of[id(named["encoder.conv1.weight"])] == 1.0
    assert lr_of[id(named["encoder.layer2.0.conv1.weight"])] == 1.0
    assert lr_of[id(named["encoder.layer3.0.conv1.weight"])] == 2.0
    assert lr_of[id(named["box_head.weight"])] == 3.0
    assert optimizer.param_groups[-1]["lr"] == 3.0, "the head's group is the last: its rate is reported"


def test_an_encoder_without_stages_says_so():
    model = SingleBoxModel(make_encoder("mobilenet_v2", "none"), 64, 2, Settings())
    freeze(model, Phase("head", 1, (1e-3,), "cosine"))
    freeze(model, Phase("all", 1, (1e-4, 1e-3), "cosine"))
    for phase in (Phase("last2", 1, (1e-3,), "cosine"), Phase("all", 1, (1e-5, 1e-4, 1e-3), "cosine")):
        with pytest.raises(UserError, match="no stages layer1"):
            freeze(model, phase)


def course(schedule, steps=70, epochs=7):
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = make_schedule(optimizer, schedule, steps, epochs)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def test_schedules():
    onecycle, cosine, sgdr, peak, flat = (course(name) for name in SCHEDULES)
    assert 14 <= onecycle.argmax() <= 20
    assert onecycle[[0, -1]] == pytest.approx([0.04, 0], abs=0.01)
    assert (np.diff(cosine) < 0).all()
    assert cosine[0] == 1
    assert np.flatnonzero(np.diff(sgdr) > 0.5).tolist() == [9, 29], "restarts after 1 and 2 more epochs of 10 steps"
    assert peak.argmax() in (33, 34)
    assert (flat == 1).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_of_few_steps(schedule):
    """As with few images, large batches or short phases."""
    for steps in range(1, 13):
        rates = course(schedule, steps, epochs=1)
        assert (rates >= 0).all()
        assert 0.03 < rates.max() <= 1 + 1e-12, steps


def test_the_legacy_one_cycle_of_2018():
    assert one_cycle_legacy(0) == pytest.approx(1 / 32)
    assert one_cycle_legacy(0.475) == pytest.approx(1)
    assert one_cycle_legacy(0.95) == pytest.approx(1 / 32)
    assert one_cycle_legacy(1) == pytest.approx(1 / 3200)


def test_groups_hold_every_parameter_once(model):
    optimizer = make_optimizer(model, [1.0], encoder_lr=0.1, weight_decay=0.5)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (0.1, 0.5),
        (0.1, 0.0),
        (1.0, 0.5),
        (1.0, 0.0),
    }
