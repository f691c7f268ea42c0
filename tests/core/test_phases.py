"""Phases as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.phases import SCHEDULES, Phase, parse_phases, phase_at
from rsna.models.registry import settings_of


def test_the_post_in_one_line():
    cfg = parse(["preset=fastai"], settings_of)
    phases = cfg.phase_list
    assert [(phase.part, phase.epochs, phase.schedule) for phase in phases] == [
        ("head", 3, "one_cycle_legacy"),
        ("last2", 5, "one_cycle_legacy"),
        ("all", 10, "one_cycle_legacy"),
    ]
    assert phases[0].lrs == (1e-3,)
    assert phases[1].lrs == pytest.approx((1e-5 / 5, 1e-4 / 5, 1e-3 / 5))
    assert phases[2].lrs == pytest.approx((1e-5 / 10, 1e-4 / 10, 1e-3 / 10))
    assert cfg.total_epochs == 18


def test_without_phases_epochs_and_lr_make_one():
    assert parse(["epochs=7", "lr=3e-4"]).phase_list == [Phase("all", 7, (3e-4,), "onecycle")]
    with pytest.raises(UserError, match="epochs= has no effect here"):
        parse(["preset=fastai", "epochs=7"], settings_of)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head", "1 of 3 or 4 fields"),
        ("neck:3:1e-3", "'neck' is not head"),
        ("last5:3:1e-3", "'last5' is not head"),
        ("head:0:1e-3", "'0' epochs"),
        ("head:3:fast", "lrs 'fast'"),
        ("head:3:0", "lrs '0'"),
        ("head:3:1/1/1/1/1/1/1", "one to 6 numbers"),
        ("head:3:1e-3:warm", "unknown schedule 'warm'"),
        ("head:3:1e-3,", "'' has 1 of"),
    ],
)
def test_wrong_phases_are_explained(text, message):
    with pytest.raises(UserError, match=message):
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
def test_phases_are_parsed_back_from_their_text(phases):
    assert parse_phases(",".join(map(str, phases))) == phases
    flat = [(k, within) for k, phase in enumerate(phases) for within in range(phase.epochs)]
    for epoch, (k, within) in enumerate(flat):
        assert phase_at(phases, epoch) == (phases[k], within)
