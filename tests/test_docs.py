"""The documentation: links work, settings exist, the README is short."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from rsna.core.config import Config
from rsna.models.registry import settings_of

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    text = page.read_text()
    for target in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text):
        path, _, anchor = "".join(target).partition("#")
        if path.startswith("http"):
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {path}"
        headings = re.findall(r"^#+ (.+)$", found.read_text(), re.M) if anchor else []
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, f"{page.name}: #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_real_settings(page):
    known = {f.name for kind in (Config, settings_of("single_box"), settings_of("fastai")) for f in fields(kind)}
    for line in re.findall(r"^(?:    )?\./run\.sh (.*?)(?:\s+#.*)?$", page.read_text(), re.M):
        words = {word.partition("=")[0] for word in line.split() if re.match(r"[a-z_]+=", word)}
        assert words <= known, f"{page.name}: {line}"


def test_readme_is_short_and_images_are_small():
    assert (ROOT / "README.md").stat().st_size <= 8 * 1024
    assert all(path.stat().st_size <= 300_000 for path in (ROOT / "docs/images").iterdir())
