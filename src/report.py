"""Write a run's report: one page with scores, plots and pictures that opens anywhere and needs no network.

python src/report.py [name=...]   -> working/<name>/report.html
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd

from rsna.startup import run
from rsna.core.config import Config, command
from rsna.core.files import content_hash, read_json, write_then_rename
from rsna.core.locks import file_lock
from rsna.core.stamps import SUBMISSION_JSON, check_fused
from rsna.core.tables import read_table
from rsna.data.cache import read_index
from rsna.data.competition import LABELS_CSV, largest_box, read_folds, read_labels, truth_boxes
from rsna.data.letterbox import GEOMETRY_COLUMNS
from rsna.evaluation.metric import mean_average_precision
from rsna.evaluation.runs import as_made, compare_runs, find_runs, people_of, read_run, read_settings
from rsna.reporting import sections as chapters
from rsna.reporting.elements import Facts, Table, digits
from rsna.reporting.gallery import KINDS, Tile, choose, make_tiles
from rsna.reporting.page import render

HISTORY_COLUMNS = ["epoch", *(column for _, columns, _, _ in chapters.CURVES.values() for column in columns)]


def main(cfg: Config) -> None:
    cfg = as_made(cfg)
    facts = read_facts(cfg)
    words = {**headline(cfg, facts), **comparison(cfg, facts), **all_chapters(facts), "tiles": gallery(cfg, facts)}
    page = render("report.html.j2", kinds=KINDS, settings=settings_table(cfg, facts), **words)
    path = cfg.run_dir / "report.html"
    with file_lock(cfg.run_dir), write_then_rename(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(f"report, {path.stat().st_size / 2**20:.1f} MB, opens in any browser -> {path}")


def read_facts(cfg: Config) -> Facts:
    """Everything that the report is about. Raises UserError for what is missing or does not belong together."""
    run = read_run(cfg.run_dir, command(cfg, "ensemble"), command(cfg, "evaluate"))
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds")).set_index("patientId")
    check_fused(cfg.run_dir, cfg.folds_csv, command(cfg, "ensemble"))
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    index = read_index(cfg.cache_dir, cfg.size)
    seen = index[(index["split"] == "train") & (index["status"] == "ok") & index["patientId"].isin(run.ids)]
    return Facts(
        run=run,
        truth=truth[truth["patientId"].isin(run.ids)],
        folds=folds.loc[run.ids],
        geometry=seen.set_index("patientId")[GEOMETRY_COLUMNS],
        size=cfg.size,
        sweep=read_table(run.folder / "threshold.csv", ["threshold", "score"], command(cfg, "evaluate")),
        histories=read_histories(run.folder, [fold["fold"] for fold in run.scores["per_fold"]]),
        command=lambda stage: command(cfg, stage),
        n_resamples=cfg.bootstrap,
        seed=cfg.seed,
    )


def read_histories(folder: Path, folds: list[int]) -> dict[int, pd.DataFrame]:
    """fold -> history.csv; a run that fuses others has none."""
    paths = {fold: folder / f"fold{fold}" / "history.csv" for fold in folds}
    tables = {fold: read_table(path, HISTORY_COLUMNS) for fold, path in paths.items() if path.is_file()}
    return {fold: table for fold, table in tables.items() if len(table)}


def headline(cfg: Config, facts: Facts) -> dict[str, Any]:
    """The numbers at the top."""
    scores = facts.run.scores
    by_fold = pd.Series([fold["mAP"] for fold in scores["per_fold"]], dtype=float)
    low, high = scores["interval"]
    return {
        "name": cfg.name,
        "score": f"{scores['mAP']:.4f}",
        "spread": f"± {by_fold.std():.4f} over {len(by_fold)} folds" if len(by_fold) > 1 else "one fold",
        "interval": f"{low:.4f} to {high:.4f}",
        "honest": digits(scores.get("cross_fitted_mAP"), ".4f"),
        "threshold": f"{scores['threshold']:.4f}",
        "auc": digits(scores["AUC"]),
        "iou": digits(scores["IoU"]),
        "images": len(facts.run.ids),
        "people": facts.folds["group"].nunique(),
        "with_box": f"{facts.kept['patientId'].nunique() / len(facts.run.ids):.1%}",
        "submission": submission_words(cfg),
        "command": command(cfg, "report"),
        "synthetic": cfg.preset == "demo",
    }


def submission_words(cfg: Config) -> str:
    """What the run would submit, as a sentence."""
    path = cfg.submission_csv.with_suffix(".json")
    if not path.is_file():
        return f"No submission was written yet. To write it: {command(cfg, 'make_submission')}"
    content = read_json(path, command(cfg, "make_submission"), SUBMISSION_JSON)
    if content["made_from"].get("scores.json") != content_hash(cfg.run_dir / "scores.json"):
        return f"The submission is of other predictions. To write it anew: {command(cfg, 'make_submission')}"
    if content["made_from"].get("submission") != content_hash(cfg.submission_csv):
        return f"The submission's file is gone or was changed. To write it anew: {command(cfg, 'make_submission')}"
    share = content["images_with_box"] / max(content["images"], 1)
    return (
        f"{cfg.submission_csv.name} gives {content['images_with_box']} of {content['images']} test images "
        f"({share:.1%}) a box, at threshold {content['threshold']:.4f}: {content['threshold_from']}."
    )


def comparison(cfg: Config, facts: Facts) -> dict[str, Any]:
    """The table of baselines and of the other runs in working/."""
    rows = [["this run", str(len(facts.run.ids)), digits(facts.run.scores["mAP"], ".4f"), "-"]]
    perfect = largest_box(facts.truth).assign(confidence=1.0)
    plain = dict(facts.run.scores.get("baselines", {}))
    plain["a perfect largest box on each opacity"] = mean_average_precision(facts.truth, perfect)
    rows += [[name, str(len(facts.run.ids)), digits(value, ".4f"), "-"] for name, value in plain.items()]
    others, refused = find_runs(Path(cfg.working), cfg.folds_csv)
    others = [run for run in others if run.folder != facts.run.folder]
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    people = people_of(facts.folds.reset_index())
    table = compare_runs(others, facts.run, truth, people, cfg.bootstrap, cfg.seed)
    rows += [
        [f"run {row['run']}", str(row["shared images"]), digits(row["mAP"], ".4f"), difference_words(row)]
        for row in table.to_dict("records")
    ]
    return {
        "comparison": Table(
            "Out of fold. The difference is that run minus this one, on the images that both have, each at its own "
            "threshold; in brackets the 95 % interval over people. One that holds 0 settles nothing.",
            ["", "images", "mAP", "difference to this run"],
            rows,
        ),
        "left_out": sorted(name for name in refused if name != facts.run.name),
        "compare_command": command(cfg, "compare"),
    }


def difference_words(row: dict[Hashable, Any]) -> str:
    if pd.isna(row["difference"]):
        return "no image in common"
    return f"{row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"


def all_chapters(facts: Facts) -> dict[str, Any]:
    """The plots and tables below the headline."""
    costs, costs_table = chapters.costs(facts)
    groups, groups_table = chapters.groups(facts)
    return {
        "costs": costs,
        "costs_table": costs_table,
        "threshold_plot": chapters.threshold(facts),
        "threshold_table": chapters.threshold_table(facts),
        "training": chapters.training(facts),
        "folds": chapters.fold_table(facts),
        "confidence": chapters.confidence(facts),
        "groups": groups,
        "groups_table": groups_table,
        "places": chapters.places(facts),
    }


def gallery(cfg: Config, facts: Facts) -> list[Tile]:
    """The pictures of the gallery."""
    boxes = {"true": facts.truth, "predicted": facts.kept, "all": facts.run.predictions}
    groups = facts.groups.assign(**{"class": facts.classes})
    chosen = choose(facts.scores, facts.truth, facts.kept)
    return make_tiles(chosen, facts.scores, groups, boxes, facts.geometry, cfg.cache_dir, cfg.size)


def settings_table(cfg: Config, facts: Facts) -> Table:
    """The settings that the run was made with, as its own files tell."""
    settings = read_settings(facts.run.folder)
    rows = [[key, str(value) or "''"] for key, value in settings.items()]
    return Table(f"Settings that decide what run {cfg.name} is", ["setting", "value"], rows)


if __name__ == "__main__":
    run(main)
