"""Phases as text, what they freeze, which rates they give to whom, and the course of the rates."""

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from find_lr import limit, steepest
from rsna.core.config import parse
from rsna.core.errors import UserError
from rsna.core.phases import SCHEDULES, Phase, parse_phases, phase_at
from rsna.models.backbone import make_encoder
from rsna.models.single_box import Settings, SingleBoxModel
from rsna.training.optim import (
    check_stages,
    freeze,
    make_optimizer,
    make_schedule,
    one_cycle_legacy,
    rates_by_stage,
    train_mode,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SingleBoxModel(make_encoder("resnet18", "none"), 64, 2, Settings(dropout=0.0))


def test_the_post_in_one_line():
    phases = parse(["preset=fastai"]).phase_list
    assert [(phase.part, phase.epochs, phase.schedule) for phase in phases] == [
        ("head", 3, "one_cycle_legacy"),
        ("last2", 5, "one_cycle_legacy"),
        ("all", 10, "one_cycle_legacy"),
    ]
    assert phases[0].rates == (1e-3,)
    assert phases[1].rates == pytest.approx((1e-5 / 5, 1e-4 / 5, 1e-3 / 5))
    assert phases[2].rates == pytest.approx((1e-5 / 10, 1e-4 / 10, 1e-3 / 10))
    assert parse(["preset=fastai"]).total_epochs == 18


def test_without_phases_epochs_and_lr_make_one():
    assert parse(["epochs=7", "lr=3e-4"]).phase_list == [Phase("all", 7, (3e-4,), "onecycle")]
    with pytest.raises(UserError, match="epochs= has no effect here"):
        parse(["preset=fastai", "epochs=7"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("head", "1 of 3 or 4 fields"),
        ("neck:3:1e-3", "'neck' is not head"),
        ("last5:3:1e-3", "'last5' is not head"),
        ("head:0:1e-3", "'0' epochs"),
        ("head:3:fast", "rates 'fast'"),
        ("head:3:0", "rates '0'"),
        ("head:3:1/1/1/1/1/1/1", "one to 6 numbers"),
        ("head:3:1e-3:warm", "no schedule 'warm'"),
        ("head:3:1e-3,", "'' has 1 of"),
    ],
)
def test_wrong_phases_are_explained(text, said):
    with pytest.raises(UserError, match=said):
        parse([f"phases={text}"])


@given(
    st.lists(
        st.builds(
            Phase,
            st.sampled_from(["head", "last1", "last2", "last3", "last4", "all"]),
            st.integers(1, 99),
            st.lists(st.sampled_from([1e-6, 2e-5, 3e-4, 0.01]), min_size=1, max_size=6).map(tuple),
            st.sampled_from(SCHEDULES),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_phases_survive_being_written(phases):
    assert parse_phases(",".join(map(str, phases))) == phases
    flat = [(k, within) for k, phase in enumerate(phases) for within in range(phase.epochs)]
    for epoch, (k, within) in enumerate(flat):
        assert phase_at(phases, epoch) == (phases[k], within)


def trained_stages(model):
    return {
        name.split(".")[1] if name.startswith("encoder.") else "head"
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def test_parts(model):
    for part, wanted in (
        ("head", {"head"}),
        ("last2", {"head", "layer3", "layer4"}),
        ("all", {"head", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ):
        freeze(model, Phase(part, 1, (1.0,), "cosine").first_stage)
        assert trained_stages(model) == wanted


def test_what_is_frozen_keeps_weights_and_statistics(model):
    phase = Phase("last1", 1, (0.1,), "constant")
    freeze(model, phase.first_stage)
    train_mode(model, phase.first_stage)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = make_optimizer(model, phase.rates, 1.0, 0.0)
    images = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    outputs = model(images)
    sum(value.square().mean() for key, value in outputs.items() if key != "centres").backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key in before if key.startswith("encoder.") and not key.startswith("encoder.layer4")}
    assert changed & frozen == set()
    assert {"encoder.layer4.0.conv1.weight", "encoder.layer4.0.bn1.running_mean", "place.weight"} <= changed


def test_rates_from_input_to_head(model):
    assert rates_by_stage([1.0], 0.1) == [0.1] * 5 + [1.0]
    assert rates_by_stage([1.0, 2.0], 0.1) == [1.0] * 5 + [2.0]
    assert rates_by_stage([1.0, 2.0, 3.0], 0.1) == [1.0, 1.0, 1.0, 2.0, 2.0, 3.0]
    assert rates_by_stage([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.1) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    optimizer = make_optimizer(model, [1.0, 2.0, 3.0], 0.1, 0.5)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert rate_of[id(named["encoder.conv1.weight"])] == 1.0
    assert rate_of[id(named["encoder.layer2.0.conv1.weight"])] == 1.0
    assert rate_of[id(named["encoder.layer3.0.conv1.weight"])] == 2.0
    assert rate_of[id(named["box.weight"])] == 3.0
    assert optimizer.param_groups[-1]["lr"] == 3.0, "the head's group is the last: its rate is reported"


def test_an_encoder_without_stages_says_so():
    encoder = smp.encoders.get_encoder("mobilenet_v2", in_channels=1, depth=5, weights=None)
    check_stages(encoder, Phase("head", 1, (1e-3,), "cosine"))
    check_stages(encoder, Phase("all", 1, (1e-4, 1e-3), "cosine"))
    for phase in (Phase("last2", 1, (1e-3,), "cosine"), Phase("all", 1, (1e-5, 1e-4, 1e-3), "cosine")):
        with pytest.raises(UserError, match="no stages layer1"):
            check_stages(encoder, phase)


def course(schedule, steps=70, epochs=7):
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = make_schedule(optimizer, schedule, steps, epochs)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


def test_courses():
    onecycle, cosine, sgdr, peak, flat = (course(name) for name in SCHEDULES)
    assert 14 <= onecycle.argmax() <= 20
    assert onecycle[[0, -1]] == pytest.approx([0.04, 0], abs=0.01)
    assert (np.diff(cosine) < 0).all()
    assert cosine[0] == 1
    assert np.flatnonzero(np.diff(sgdr) > 0.5).tolist() == [9, 29], "restarts after 1 and 2 more epochs of 10 steps"
    assert peak.argmax() in (33, 34)
    assert (flat == 1).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_courses_of_few_steps(schedule):
    """Small data, large batches and short phases make them."""
    for steps in range(1, 13):
        rates = course(schedule, steps, epochs=1)
        assert (rates >= 0).all()
        assert 0.03 < rates.max() <= 1 + 1e-12, steps


def test_the_triangle_of_2018():
    assert one_cycle_legacy(0) == pytest.approx(1 / 32)
    assert one_cycle_legacy(0.475) == pytest.approx(1)
    assert one_cycle_legacy(0.95) == pytest.approx(1 / 32)
    assert one_cycle_legacy(1) == pytest.approx(1 / 3200)


def test_the_range_tests_suggestion_lies_on_the_slope():
    """Flat (but for a noisy start) up to 1e-4, falling to 1e-2, then rising."""
    rates = 10.0 ** np.linspace(-7, 0, 100)
    log = np.log10(rates)
    loss = np.interp(log, [-7, -4, -2, 0], [2.0, 2.0, 1.0, 5.0])
    loss[:3] = [2.6, 2.2, 2.0]
    table = pd.DataFrame({"lr": rates, "smoothed": loss})
    assert 1e-4 < steepest(table) < 1e-2
    assert 1e-2 < limit(table) < 2e-2
