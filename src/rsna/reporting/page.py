"""The report as one HTML file that needs nothing else: template, style and script are put together here."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(template: str, **words: Any) -> str:
    """Fill a template of this folder. Everything is escaped but plots, which are drawn here and hold no names.

    The page forbids itself to fetch anything, and to run any script but the one that is its own: `policy`.
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
    """A content security policy: pictures from the page itself, one script, known by its hash, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
