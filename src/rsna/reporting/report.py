"""The report of a run: collect its data, and render one self-contained HTML file."""

import base64
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rsna.core.artifacts import is_current, manifest_path, with_settings
from rsna.core.command_line import command
from rsna.core.config import Config
from rsna.core.files import content_hash, read_json, write_text
from rsna.core.tables import read_numbers, read_table
from rsna.data.competition import largest_box, read_folds, read_truth
from rsna.evaluation.metric import mean_average_precision, of_images
from rsna.evaluation.operating_point import SURFACE_COLUMNS
from rsna.evaluation.runs import Run, compare_runs, find_runs, manifests, read_run, read_settings
from rsna.evaluation.scores import spread_of_folds
from rsna.inference.submission import SUBMISSION_JSON
from rsna.reporting import analysis_sections, sections, svg, training_sections
from rsna.reporting.gallery import KINDS, make_tiles
from rsna.reporting.montage import cached_images
from rsna.reporting.sections import ReportData, Rows
from rsna.reporting.summary import difference, digits

TEMPLATES = Path(__file__).resolve().parent / "templates"
MANIFEST_JSON = {"settings": dict, "outputs": dict, **SUBMISSION_JSON}


def write_report(cfg: Config) -> Path:
    """Write report.html of a run; cfg: the settings that it was made with. Raises UserError if it is not current."""
    path = cfg.run_dir / "report.html"
    write_text(render("report.html.j2", **page_content(read_data(cfg))), path, mark=b"<title>Report of run ")
    return path


def read_data(cfg: Config) -> ReportData:
    """The data of the report. Raises UserError if something is missing or not current."""
    run = read_run(cfg)
    folds = read_folds(cfg.folds_csv, command(cfg, "make_folds")).set_index("patientId").loc[run.ids]
    return ReportData(
        cfg=cfg,
        run=run,
        truth=of_images(read_truth(Path(cfg.input)), run.ids),
        folds=folds,
        geometry=cached_images(cfg, "train"),
        sweep=read_numbers(run.folder / "threshold.csv", ["threshold", "score"], command(cfg, "evaluate")),
        surface=read_numbers(run.folder / "surface.csv", SURFACE_COLUMNS, command(cfg, "evaluate")),
        histories=read_histories(run),
        people=folds["group"].astype(str),
    )


def read_histories(run: Run) -> dict[int, pd.DataFrame]:
    """fold -> history.csv, for the folds that have one; a run that fuses other runs has none."""
    paths = {fold["fold"]: run.folder / f"fold{fold['fold']}" / "history.csv" for fold in run.scores["per_fold"]}
    columns = training_sections.HISTORY_COLUMNS
    begun = {k: path for k, path in paths.items() if path.is_file() and len(read_table(path, columns))}
    return {k: read_numbers(path, columns) for k, path in begun.items()}


def submission_sentence(cfg: Config) -> str:
    """A sentence about the run's submission: what it contains, or that it is missing, changed or stale."""
    path, rebuild = manifest_path(cfg, "make_submission"), command(cfg, "make_submission")
    if not path.is_file():
        return f"No submission was written yet. To write it: {rebuild}"
    content = read_json(path, rebuild, MANIFEST_JSON)
    if content_hash(cfg.submission_csv) not in content["outputs"].values():
        return f"The file of the submission is missing or was changed. To write it again: {rebuild}"
    if not is_current(with_settings(cfg, content), "make_submission"):
        return f"The submission is stale: it was made from other predictions or scores. To write it again: {rebuild}"
    fraction = content["images_with_box"] / max(content["images"], 1)
    return (
        f"{cfg.submission_csv.name} gives {content['images_with_box']} of {content['images']} test images "
        f"({fraction:.1%}) a box, at threshold {content['threshold']:.4f}: {content['threshold_from']}."
    )


def search_picture(cfg: Config) -> str:
    """tune.png of the search that a run called <search>_best came from, as a data URI; empty if there is none."""
    path = Path(cfg.working) / cfg.name.removesuffix("_best") / "tune.png"
    if not cfg.name.endswith("_best") or not path.is_file():
        return ""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def compare(data: ReportData) -> tuple[Rows, list[str]]:
    """Rows for this run, the baselines and the other runs in working/; and the names of runs that are left out."""
    scores, perfect = data.run.scores, largest_box(data.truth).assign(confidence=1.0)
    same_images = {"this run": scores["mAP"], **scores["baselines"]}
    same_images["a perfect largest box on each positive image"] = mean_average_precision(data.truth, perfect)
    runs, refused = find_runs(data.cfg)
    other_runs = [run for run in runs if run.folder != data.run.folder]
    paired = ["-"] if other_runs else []
    rows = [[name, str(len(data.run.ids)), digits(value), *paired] for name, value in same_images.items()]
    for row in compare_runs(data.cfg, other_runs, data.run, data.truth, data.people).to_dict("records"):
        own = [f"run {row['run']}", str(row["shared images"]), digits(row["mAP"])]
        rows.append([*own, difference(row) or "no common image"])
    return rows, sorted(name for name in refused if name != data.run.name)


@svg.styled
def page_content(data: ReportData) -> dict[str, Any]:
    """The numbers, plots, tables and images of the page, under the names that the template uses."""
    spread = spread_of_folds(data.run.scores)
    n_folds = sum(fold["mAP"] is not None for fold in data.run.scores["per_fold"])
    return {
        "name": data.run.name,
        "scores": data.run.scores,
        "spread": "one fold" if pd.isna(spread) else f"± {spread:.4f} over {n_folds} folds",
        "patients": data.folds["group"].nunique(),
        "submission": submission_sentence(data.cfg),
        "synthetic": data.cfg.is_demo,
        "command": partial(command, data.cfg),
        "comparison": compare(data),
        "losses": analysis_sections.losses(data),
        "threshold": sections.threshold(data),
        "surface": sections.surface(data),
        "cross_fitted": sections.cross_fitted_rows(data),
        "training": training_sections.training(data),
        "search": search_picture(data.cfg),
        "folds": sections.fold_rows(data),
        "calibration": analysis_sections.calibration(data),
        "roc": analysis_sections.roc(data),
        "overlaps": analysis_sections.overlaps(data),
        "groups": analysis_sections.groups(data),
        "coverage": analysis_sections.coverage(data),
        "kinds": KINDS,
        "tiles": make_tiles(data),
        "settings": setting_rows(data.run.folder),
    }


def setting_rows(folder: Path) -> Rows:
    """Rows of a run's settings; a setting that is a file is shown with its content hash."""
    settings = read_settings(folder)
    hashes = {key: value for manifest in manifests(folder) for key, value in manifest["inputs"].items()}
    shown = {key: f"a file ({hashes.get(key)})" if value == "a file" else value for key, value in settings.items()}
    return [[key, str(value) or "''"] for key, value in shown.items()]


def render(template: str, **words: Any) -> str:
    """Fill a template. Everything is escaped except plots, which this program draws and which contain no names."""
    rules: Any = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), **rules)
    environment.filters |= {"drawing": Markup, "digits": digits}
    script, style = ((TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    words |= {"script": Markup(script), "style": Markup(style), "policy": policy(script)}
    return environment.get_template(template).render(words)


def policy(script: str) -> str:
    """A content security policy: only images and styles in the page itself, and one script, identified by its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
