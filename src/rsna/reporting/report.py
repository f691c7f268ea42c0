"""The report of a run: its data, and one HTML file that needs nothing else."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rsna.core.artifacts import is_current, manifest_path, with_settings
from rsna.core.config import Config, command
from rsna.core.files import content_hash, read_json, write_then_rename
from rsna.core.tables import read_table
from rsna.data.cache import read_index
from rsna.data.competition import LABELS_CSV, read_folds, read_labels, truth_boxes
from rsna.data.letterbox import GEOMETRY_COLUMNS
from rsna.evaluation.runs import read_run, read_settings
from rsna.reporting import error_sections, sections
from rsna.reporting.comparison import comparison_section
from rsna.reporting.elements import ReportData, Table, digits
from rsna.reporting.gallery import KINDS, make_tiles

TEMPLATES = Path(__file__).resolve().parent / "templates"
HISTORY_COLUMNS = ["epoch", *(column for curve in sections.CURVES for column in curve.columns)]
# what is read from the submission's manifest, and of what type
SUBMISSION_JSON = {
    "settings": dict,
    "outputs": dict,
    "images": int,
    "images_with_box": int,
    "threshold": int | float,
    "threshold_from": str,
}


def write_report(cfg: Config) -> Path:
    """Write report.html of a run; cfg holds the settings it was made with. Raises UserError if it is not current."""
    data = read_data(cfg)
    words = {**headline(cfg, data), **comparison_section(cfg, data), **all_sections(data)}
    page = render(
        "report.html.j2",
        kinds=KINDS,
        tiles=make_tiles(data, cfg.cache_dir),
        settings=settings_table(cfg, data),
        **words,
    )
    path = cfg.run_dir / "report.html"
    with write_then_rename(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def read_data(cfg: Config) -> ReportData:
    """All that the report is made from. Raises UserError for what is missing or not current."""
    run = read_run(cfg)
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds")).set_index("patientId")
    truth = truth_boxes(read_labels(Path(cfg.input) / LABELS_CSV))
    index = read_index(cfg.cache_dir, cfg.size)
    seen = index[(index["split"] == "train") & (index["status"] == "ok") & index["patientId"].isin(run.ids)]
    return ReportData(
        run=run,
        truth=truth[truth["patientId"].isin(run.ids)],
        folds=folds.loc[run.ids],
        geometry=seen.set_index("patientId")[GEOMETRY_COLUMNS],
        size=cfg.size,
        sweep=read_table(run.folder / "threshold.csv", ["threshold", "score"], command(cfg, "evaluate")),
        histories=read_histories(run.folder, [fold["fold"] for fold in run.scores["per_fold"]]),
        command=lambda name: command(cfg, name),
        n_resamples=cfg.bootstrap,
        seed=cfg.seed,
    )


def read_histories(folder: Path, folds: list[int]) -> dict[int, pd.DataFrame]:
    """fold -> history.csv; a run that fuses others has none."""
    paths = {fold: folder / f"fold{fold}" / "history.csv" for fold in folds}
    tables = {fold: read_table(path, HISTORY_COLUMNS) for fold, path in paths.items() if path.is_file()}
    return {fold: table for fold, table in tables.items() if len(table)}


def headline(cfg: Config, data: ReportData) -> dict[str, Any]:
    """The numbers at the top."""
    scores = data.run.scores
    by_fold = pd.Series([fold["mAP"] for fold in scores["per_fold"]], dtype=float)
    low, high = scores["interval"]
    return {
        "name": cfg.name,
        "score": f"{scores['mAP']:.4f}",
        "spread": f"± {by_fold.std():.4f} over {len(by_fold)} folds" if len(by_fold) > 1 else "one fold",
        "interval": f"{low:.4f} to {high:.4f}",
        "cross_fitted": digits(scores.get("cross_fitted_mAP"), ".4f"),
        "threshold": f"{scores['threshold']:.4f}",
        "auc": digits(scores["AUC"]),
        "iou": digits(scores["IoU"]),
        "images": len(data.run.ids),
        "patients": data.folds["group"].nunique(),
        "with_box": f"{data.kept['patientId'].nunique() / len(data.run.ids):.1%}",
        "submission": submission_sentence(cfg),
        "command": command(cfg, "report"),
        "synthetic": "demo" in cfg.preset.split(","),
    }


def submission_sentence(cfg: Config) -> str:
    """What the run submits, and whether that file is current, stale or changed."""
    path, rebuild = manifest_path(cfg, "make_submission"), command(cfg, "make_submission")
    if not path.is_file():
        return f"No submission was written yet. To write it: {rebuild}"
    content = read_json(path, rebuild, SUBMISSION_JSON)
    if content_hash(cfg.submission_csv) not in content["outputs"].values():
        return f"The file of the submission is missing or was changed. To write it again: {rebuild}"
    if not is_current(with_settings(cfg, content), "make_submission"):
        return f"The submission is stale: it was made from other predictions or scores. To write it again: {rebuild}"
    fraction = content["images_with_box"] / max(content["images"], 1)
    return (
        f"{cfg.submission_csv.name} gives {content['images_with_box']} of {content['images']} test images "
        f"({fraction:.1%}) a box, at threshold {content['threshold']:.4f}: {content['threshold_from']}."
    )


def all_sections(data: ReportData) -> dict[str, Any]:
    """The plots and tables below the headline."""
    losses, losses_table = error_sections.losses(data)
    groups, groups_table = error_sections.groups(data)
    return {
        "losses": losses,
        "losses_table": losses_table,
        "threshold_plot": sections.threshold(data),
        "threshold_table": sections.threshold_table(data),
        "training": sections.training(data),
        "folds": sections.fold_table(data),
        "confidence": error_sections.confidence(data),
        "groups": groups,
        "groups_table": groups_table,
        "coverage": error_sections.coverage(data),
    }


def settings_table(cfg: Config, data: ReportData) -> Table:
    """The settings that the run was made with, as its manifests record them."""
    rows = [[key, str(value) or "''"] for key, value in read_settings(data.run.folder).items()]
    return Table(f"Settings of run {cfg.name}, of training, prediction and fusion", ["setting", "value"], rows)


def render(template: str, **words: Any) -> str:
    """Fill a template. Everything is escaped but plots, which are drawn here and contain no names.

    A content security policy forbids the page to fetch anything, and to run any script but its own.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = Markup
    script, style = ((TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    return environment.get_template(template).render(
        script=Markup(script), style=Markup(style), policy=policy(script), **words
    )


def policy(script: str) -> str:
    """A content security policy: images from the page itself, one script, identified by its hash, nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
