"""The learning rates that the range test suggests."""

import numpy as np
import pandas as pd

from rsna.training.lr_finder import highest_lr, steepest_lr, suggested_lr


def test_the_range_tests_suggestion_lies_on_the_slope():
    """The loss is flat (with a noisy start) up to 1e-4, falls until 1e-2, then rises."""
    rates = 10.0 ** np.linspace(-7, 0, 100)
    log = np.log10(rates)
    loss = np.interp(log, [-7, -4, -2, 0], [2.0, 2.0, 1.0, 5.0])
    loss[:3] = [2.6, 2.2, 2.0]
    table = pd.DataFrame({"lr": rates, "smoothed": loss})
    assert 1e-4 < steepest_lr(table) < 1e-2
    assert 1e-2 < highest_lr(table) < 2e-2
    assert suggested_lr(table) == highest_lr(table) / 3
