"""Files of a run with a field that is missing, retyped, empty or nested wrongly: every reader says so in one line."""

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.finished_run import copy_workspace, run_main, settings, without_networks
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rsna.core.artifacts import record
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.evaluation.runs import Run, describe
from rsna.evaluation.score_text import print_point
from rsna.evaluation.scores import SCORES_JSON, read_scores
from rsna.reporting.summary import out_of_fold_rows

NONSENSE = [None, "x", [], {}, [{}], {"a": 1}, True, [1, 2, 3], float("inf")]


@pytest.fixture
def cfg(finished, tmp_path, monkeypatch):
    copy_workspace(finished, tmp_path / "w")
    without_networks(monkeypatch)
    return parse(settings(tmp_path / "w"))


def places(form, path=()):
    """The path of every field of a form, including nested ones."""
    for key, own in form.items() if isinstance(form, dict) else enumerate(form) if isinstance(form, list) else ():
        yield (*path, key)
        yield from places(own, (*path, key))


def broken(content, path, value):
    """A copy with another value at this path, or without the field if the value is "gone"."""
    copied = json.loads(json.dumps(content))
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    if value == "gone":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return copied


def replace(path, text):
    path.unlink()  # it may be linked
    path.write_text(text)


def said_by(command, cfg):
    """The message of a command's UserError, or ""; any other exception fails the test."""
    try:
        run_main(command, cfg)
    except UserError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message
    return message


@hypothesis_settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(places(SCORES_JSON))), st.sampled_from(["gone", *NONSENSE]))
def test_broken_scores_are_refused_or_read_to_the_end(finished, tmp_path, path, value):
    scores = json.loads((finished / "working/first/scores.json").read_text())
    (tmp_path / "scores.json").write_text(json.dumps(broken(scores, path, value)))
    try:
        found = read_scores(tmp_path, "./run.sh evaluate")
    except UserError as error:
        message = str(error)
    else:
        message = ""
        out_of_fold_rows(found)
        describe(Run(tmp_path, found, pd.DataFrame()))
        print_point({**found, "operating_point": {"intervals": None, **found["operating_point"]}})
    assert not message or f"scores.json: '{path[0]}' is missing or not valid" in message


@pytest.mark.parametrize("path", [("mAP",), ("operating_point", "bins"), ("per_fold", 0, "fold"), ("interval", 1)])
def test_every_reader_of_broken_scores_names_the_file(cfg, path, capsys):
    file = cfg.run_dir / "scores.json"
    replace(file, json.dumps(broken(json.loads(file.read_text()), path, {"a": 1})))
    record(cfg, "evaluate")
    for command in ("summary", "make_submission", "report", "compare", "show_results"):
        assert f"scores.json: '{path[0]}' is missing or not valid" in said_by(command, cfg)


TABLES = [(name, how) for name in ("threshold.csv", "surface.csv") for how in ("header only", "text")]


# a fold whose first epoch has not finished has a history without rows
@pytest.mark.parametrize(("name", "how"), [*TABLES, ("fold0/history.csv", "text")])
def test_a_report_of_broken_tables_names_the_file(cfg, name, how, capsys):
    table = pd.read_csv(cfg.run_dir / name)
    number = "epoch" if "epoch" in table else "threshold"
    changed = table.iloc[:0] if how == "header only" else table.astype({number: object}).assign(**{number: "x"})
    replace(cfg.run_dir / name, changed.to_csv(index=False))
    record(cfg, *(("train", 0) if name.startswith("fold0") else ("evaluate",)))
    expected = "no rows" if how == "header only" else f"{number} is not a number"
    assert f"{Path(name).name}: {expected}" in said_by("report", cfg)


def test_compare_names_the_seconds_that_are_text(cfg, capsys):
    replace(cfg.fold_dir(0) / "seconds.csv", "epoch,seconds\n1,long\n")
    assert "seconds.csv: seconds is not a number in each row" in said_by("compare", cfg)


def test_probabilities_that_are_text_are_named(cfg, capsys):
    path = cfg.fold_dir(0) / "valid_images.csv"
    replace(path, path.read_text().replace("0.25", "likely", 1))
    record(cfg, "predict", 0)
    assert "valid_images.csv: p_normal is not a number in each row" in said_by("ensemble", cfg)


def test_an_output_that_its_manifest_does_not_know_is_not_trusted(cfg, capsys):
    path = cfg.run_dir / "ensemble.json"
    content = json.loads(path.read_text())
    del content["outputs"]["oof.csv"]
    replace(path, json.dumps(content))
    assert "oof.csv: not as ensemble wrote it" in said_by("report", cfg)
