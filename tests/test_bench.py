"""The benchmarks that need no other package run with their documented commands and print their ratios."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.mark.parametrize(
    ("script", "words", "ratios"),
    [
        pytest.param(
            *("loader", "size=64 batch=8 images=64 rate=2000 workers=1"),
            ["share_of_the_clocks_rate", "to_a_loader_that"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("growth", "sizes=200,600"),
            ["exponent_of_ensemble", "megabytes_of_report_at_600", "seconds_of_cache_images:complete_at_600"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("cache_format", "images=40 size=64"),
            ["gigabytes_of_shards_to_png", "images_per_second_from_memory_of_array_to_png"],
            marks=pytest.mark.slow,
        ),
        ("operating_point", "images=300 seeds=1", ["loss_of_share_to_oracle", "loss_of_settled_to_oracle"]),
        pytest.param(
            *("scale", "images=50 few=10 rounds=1"),
            ["start_up_to_bare_imports", "cost_per_image_of_40_to_10"],
            marks=pytest.mark.slow,
        ),
        pytest.param(*("seeds", "quick=true"), ["AUC_of_seed2_to_seed1", "seconds_of_seed2"], marks=pytest.mark.slow),
        pytest.param(*("outliers", "quick=true"), ["flagged_of_inverted", "flagged_of_noise"], marks=pytest.mark.slow),
    ],
)
def test_it_runs_and_prints_its_ratios(script, words, ratios):
    command = [sys.executable, str(BENCH / f"{script}.py"), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for ratio in ratios:
        found = re.search(rf"^ratio {ratio}\w* ([\d.]+)$", done.stdout, re.MULTILINE)
        assert found, done.stdout
        assert float(found[1]) > 0
