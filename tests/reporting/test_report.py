"""The report as a file, and in a headless browser where there is one."""

import base64
import html
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from helpers.commands import run_command
from helpers.run_files import make_competition, make_predictions, make_run, words

from rsna.core.artifacts import record
from rsna.core.command_line import parse
from rsna.core.errors import UserError
from rsna.core.stages import STAGES
from rsna.evaluation.metric import image_scores
from rsna.evaluation.runs import as_made
from rsna.reporting.gallery import KINDS, PER_KIND, choose
from rsna.reporting.report import TEMPLATES, policy, render, write_report
from rsna.reporting.sections import plateau
from rsna.reporting.training_pictures import draw_study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
NO_BROWSER = "no Chromium with chromedriver here; Debian: apt-get install chromium chromium-driver"
HOSTILE = '<img src=x onerror="document.title=1">'
PHONE, DESK = (390, 844), (1280, 900)


def report(words):
    """Do what the command does."""
    return write_report(as_made(parse(words)))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The report of a run on 300 images, among other runs; headers and names contain markup."""
    root = tmp_path_factory.mktemp("a report & <more>")

    def taint(folds):
        folds.loc[::7, "view"] = HOSTILE
        folds.loc[::11, "sex"] = "Jane Doe"
        folds.loc[3, "age"] = 155
        folds["group"] = folds["group"] + "-secret"
        return folds

    _, labels = make_competition(root, 300, edit=taint)
    make_run(root, make_predictions(labels, 1, 0.2), "second", epochs=2)
    make_run(root, make_predictions(labels, 2, 0.2), HOSTILE.replace("/", ""))
    make_run(root, make_predictions(labels), "first", parts=("box", HOSTILE), encoder=HOSTILE.replace('"', "'"))
    return report(words(root))


class Outline(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def outline(made):
    return Outline(made.read_text())


def test_the_top_shows_the_figures_of_the_files(made, outline):
    scores = json.loads((made.parent / "scores.json").read_text())
    text = " ".join(" ".join(outline.text).split())
    by_fold = np.std([fold["mAP"] for fold in scores["per_fold"]], ddof=1)
    for text_part in (
        f"{scores['mAP']:.4f} ± {by_fold:.4f} over 2 folds",
        f"{scores['interval'][0]:.4f} to {scores['interval'][1]:.4f}",
        f"{scores['cross_fitted_mAP']:.4f}",
        f"{scores['threshold']:.4f} gives",
        f"AP50, all boxes {scores['AP50']:.4f}",
        "sensitivity " + " ".join(f"{share:.3f}" for share in scores["FROC"].values()),
        "first.csv gives 5 of 20 test images (25.0%) a box, at threshold 0.4321: as many as single folds give a box.",
        "median box on every image",
        "run second",
    ):
        assert text_part in text, text_part


def test_the_parts_in_the_table_add_up(made):
    table = cost_rows(made)
    assert table["lost mAP"].iloc[:-1].sum() == pytest.approx(table["lost mAP"].iloc[-1], abs=4e-4)
    scores = json.loads((made.parent / "scores.json").read_text())
    assert table["lost mAP"].iloc[-1] == pytest.approx(1 - scores["mAP"], abs=6e-5)


def cost_rows(path):
    text = path.read_text()
    body = text[text.index("lost mAP") :]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', body[: body.index("</table>")])
    return pd.DataFrame(rows, columns=["part", "images", "lost mAP"]).astype({"lost mAP": float})


def test_nothing_from_headers_or_names_becomes_markup(made, outline):
    """The page has only its own script, and no tag or attribute from a header, a name, a column or a setting."""
    text = made.read_text()
    assert len(outline.all("script")) == 1
    assert not [tag for tag, attributes in outline.tags if any(name.startswith("on") for name in attributes)]
    assert "<img src=x" not in text
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in outline.all("img"))
    assert "Jane Doe" not in text
    assert "-secret" not in text, "no person is named"
    assert "155" not in re.sub(r"base64,[^\"]*|[\d.]{3,}", "", text)
    shown = " ".join(outline.text)
    assert HOSTILE.replace("/", "") in shown, "the name of a folder is shown as text"
    assert HOSTILE.replace('"', "'") in shown, "and so is a setting"


def test_nothing_is_fetched_and_scripts_are_bound_by_hash(made, outline):
    text = made.read_text()
    for attributes in (attributes for _, attributes in outline.tags):
        for key in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert attributes.get(key, "#").startswith(("#", "data:")), attributes
    assert not re.search(r"@import|url\((?!#)", text)
    (rule,) = [tag["content"] for tag in outline.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert rule == policy((TEMPLATES / "report.js").read_text())
    assert rule.startswith("default-src 'none'")


def test_figures_have_alternative_text_and_tables_have_headers(outline):
    figures = outline.all("figure")
    assert len(figures) == 14, "two of them are parts of the loss"
    roles = [attributes for attributes in outline.all("div") if attributes.get("role") == "img"]
    assert len(roles) == len(figures)
    assert all(
        len(attributes["aria-label"]) > 40 and re.search(r"\d", attributes["aria-label"]) for attributes in roles
    )
    assert all(attributes["alt"] for attributes in outline.all("img"))
    assert len(outline.all("figcaption")) == len(figures)
    assert outline.all("caption") == [{}] * len(outline.all("table"))
    scopes = [attributes.get("scope") for attributes in outline.all("th")]
    assert set(scopes) == {"col", "row"}
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "each id once, those in the plots too"
    targets = {attributes["href"][1:] for attributes in outline.all("a")}
    targets |= {attributes["xlink:href"][1:] for attributes in outline.all("use")}
    assert targets <= set(ids)


def test_every_figure_names_the_command(made):
    commands = re.findall(r"made by <code>(.*?)</code>", made.read_text())
    assert len(commands) == 15
    *stages, report = commands
    assert set(stages) <= STAGES.keys()
    assert report.startswith("./run.sh report ")
    assert "name=first" in report


def test_the_same_files_make_the_same_page(made):
    before = made.read_bytes()
    report(words(made.parents[2]))
    assert made.read_bytes() == before


def test_the_gallery_shows_each_image_once_and_in_order():
    truth = pd.DataFrame({"patientId": [f"p{k}" for k in range(6)], "x": 0.0, "y": 0.0, "width": 10.0, "height": 10.0})
    truth["height"] = [10.0, 10, 10, 10, 5, 20]
    kept = pd.DataFrame(
        [("p0", 0.9, 10), ("p1", 0.8, 7), ("p2", 0.7, 5), ("p3", 0.6, 1), ("n0", 0.2, 5), ("n1", 0.3, 5)],
        columns=["patientId", "confidence", "height"],
    ).assign(x=0.0, y=0.0, width=10.0)
    scores = image_scores(truth, kept).mean(axis=1)
    chosen = choose(scores, truth, kept, per_kind=3)
    assert chosen == {"best": ["p0", "p1"], "worst": ["p3", "p2"], "false alarm": ["n1", "n0"], "missed": ["p5", "p4"]}
    assert list(chosen) == list(KINDS)


def test_a_name_that_is_not_given_to_the_template_is_an_error():
    with pytest.raises(Exception, match="is undefined"):
        render("report.html.j2", name="x")


def test_missing_or_old_scores_name_the_command(tmp_path):
    _, labels = make_competition(tmp_path, 40)
    run = make_run(tmp_path, make_predictions(labels), "first").run_dir
    (tmp_path / "submissions/first.json").unlink()
    for history in run.glob("fold*/history.csv"):
        history.unlink()
    report(words(tmp_path))
    text = (run / "report.html").read_text()
    assert "No submission was written yet. To write it: ./run.sh make_submission" in text
    assert "This run has no training of its own" in text
    done = run_command("report", *words(tmp_path, "other"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert re.search("name=other: no such run in .*; choose one of: first", done.stderr)
    (tmp_path / "working/other/fold0").mkdir(parents=True)
    (tmp_path / "working/other/fold0/config.yaml").touch()
    done = run_command("report", *words(tmp_path, "other"))
    assert done.returncode == 1
    assert re.search(r"evaluate has not finished; run: \./run\.sh evaluate .*name=other", done.stderr)
    assert "Traceback" not in done.stderr
    folds = tmp_path / "folds/folds.csv"
    folds.write_text(folds.read_text().replace("AP", "PA"))
    with pytest.raises(UserError, match=r"folds\.csv: not as make_folds wrote it; .*run: \./run\.sh make_folds"):
        report(words(tmp_path))


@pytest.mark.parametrize("kind", ["perfect", "unpredicted", "negative"])
def test_extreme_runs(tmp_path, kind):
    """A perfect run, one without any box, and one with boxes on negatives only."""
    _, labels = make_competition(tmp_path, 40)
    table = make_predictions(labels)
    positive = table["patientId"].map(labels.drop_duplicates("patientId").set_index("patientId")["Target"]) == 1
    if kind == "perfect":
        table = labels[labels["Target"] == 1].rename(columns={"Target": "confidence"})
        rest = labels[labels["Target"] == 0].drop(columns="Target").assign(confidence=np.nan)
        table = pd.concat([table, rest])[["patientId", "confidence", "x", "y", "width", "height"]]
        table["confidence"] = table["confidence"].astype(float)
    else:
        hide = positive if kind == "negative" else positive | True
        table.loc[hide, ["confidence", "x", "y", "width", "height"]] = np.nan
    run = make_run(tmp_path, table, "first").run_dir
    report(words(tmp_path))
    text = (run / "report.html").read_text()
    assert {"perfect": "<strong>1.0000</strong>"}.get(kind, "<strong>0.0000</strong>") in text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A run on as many images as in the challenge, all of noise, which compresses worst."""
    root = tmp_path_factory.mktemp("large")
    _, labels = make_competition(root, 26_684, side=512)
    make_run(root, make_predictions(labels), "first", epochs=40, size=512)
    return report(words(root, "first", "size=512"))


def test_the_page_stays_small_for_the_whole_challenge(large):
    text = large.read_text()
    assert "26684 images" in text
    assert large.stat().st_size < 15e6
    assert text.count("<li data-kind=") == 4 * PER_KIND
    without_images = re.sub(r"base64,[^\"]*", "", text)
    assert len(without_images) < 600_000
    longest = max(len(path) for path in re.findall(r' d="([^"]*)"', without_images))
    assert longest < 40_000, "curves are thinned"


def test_the_plateau_ends_where_the_score_falls():
    """Two peaks of the same height are not one plateau."""
    sweep = pd.DataFrame({"threshold": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "score": [0.1, 0.96, 1.0, 0.5, 0.99, 0.2]})
    assert plateau(sweep).tolist() == [0.8, 0.7]


def test_commands_on_the_page_are_those_of_the_run_whatever_is_set(tmp_path):
    _, labels = make_competition(tmp_path, 60)
    cfg = make_run(tmp_path, make_predictions(labels), lr=0.01)
    report([*words(tmp_path), "encoder=resnet50"])
    text = html.unescape((cfg.run_dir / "report.html").read_text())
    assert "lr=0.01" in text
    assert "encoder=resnet50" not in text
    (tmp_path / "submissions/first.csv").unlink()
    history = cfg.fold_dir(0) / "history.csv"
    history.write_text(history.read_text().splitlines()[0] + "\n")
    record(cfg, "train", 0)
    assert "The file of the submission is missing or was changed" in html.unescape(report(words(tmp_path)).read_text())


def test_parts_of_the_loss_are_shown_whatever_their_names(tmp_path):
    """The parts that all folds recorded, by the names of their columns."""
    _, labels = make_competition(tmp_path, 40)
    cfg = make_run(tmp_path, make_predictions(labels), parts=("objectness", "offset"))
    history = cfg.fold_dir(1) / "history.csv"
    pd.read_csv(history).drop(columns="valid_offset").to_csv(history, index=False)
    record(cfg, "train", 1)
    text = report(words(tmp_path)).read_text()
    assert "<h3>Loss: objectness</h3>" in text
    assert "Loss: offset" not in text


def test_the_search_behind_the_settings_is_shown(tmp_path):
    """Only in the report of the run that tune recommends to train."""
    _, labels = make_competition(tmp_path, 40)
    for name in ("lrs_best", "other"):
        make_run(tmp_path, make_predictions(labels), name)
    (search := tmp_path / "working/lrs").mkdir()
    table = pd.DataFrame({"number": [0, 1], "state": "COMPLETE", "value": [0.1, 0.2]})
    draw_study(table, {"lr": 0.8, "flip": 0.2}, search / "tune.png")
    pages = {name: report([*words(tmp_path), f"name={name}"]).read_text() for name in ("lrs_best", "other")}
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)"', pages["lrs_best"])
    assert (search / "tune.png").read_bytes() in map(base64.b64decode, shown)
    assert "The search for these settings" not in pages["other"]


def test_a_submission_of_older_scores_is_called_stale(tmp_path):
    _, labels = make_competition(tmp_path, 40)
    cfg = make_run(tmp_path, make_predictions(labels))
    scores = cfg.run_dir / "scores.json"
    scores.write_text(scores.read_text().replace('"accuracy": ', '"accuracy": 1'))
    record(cfg, "evaluate")
    text = report(words(tmp_path)).read_text()
    assert "The submission is stale" in text
    assert "To write it again: ./run.sh make_submission" in text


def test_scores_of_an_earlier_version_have_a_report_too(tmp_path):
    _, labels = make_competition(tmp_path, 40)
    cfg = make_run(tmp_path, make_predictions(labels))
    path = cfg.run_dir / "scores.json"
    scores = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in scores.items() if key not in ("AP50", "FROC")}))
    record(cfg, "evaluate")
    text = report(words(tmp_path)).read_text()
    assert "FROC" not in text
    assert "<dt>AP50, all boxes</dt><dd><strong>-</strong></dd>" in text


# from here on in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that logs its console and its requests."""
    if not (CHROMIUM and DRIVER):
        pytest.skip(NO_BROWSER)
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # given explicitly, so that selenium does not download one
    service = webdriver.ChromeService(executable_path=DRIVER, env=os.environ | {"SE_OFFLINE": "true"})
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


def open_page(browser, path, size=DESK, scheme="light"):
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())


def press(browser, *keys):
    """Send keys to the element with the focus."""
    from selenium.webdriver.common.action_chains import ActionChains

    chain = ActionChains(browser)
    for key in keys:
        chain.send_keys(key)
    chain.perform()


def visible_kinds(browser):
    """The kind of each image that is visible."""
    tiles = browser.find_elements("css selector", ".tiles > li")
    return [tile.get_attribute("data-kind") for tile in tiles if tile.is_displayed()]


def choose_kind(browser, kind):
    browser.find_element("css selector", f'.filters input[value="{kind}"]').click()


def test_opens_from_disk_without_errors_or_requests(browser, made):
    open_page(browser, made)
    assert browser.title == "Report of run first"
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert made.as_uri() in asked
    assert all(url == made.as_uri() or url.startswith("data:") for url in asked), asked
    assert browser.execute_script("return [...document.images].every((one) => one.naturalWidth > 0)")


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_does_not_scroll_sideways(browser, made, size):
    open_page(browser, made, size)
    assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [size[0]] * 2
    letters = browser.execute_script(
        "return [...document.querySelectorAll('.plot svg text')].map((one) => one.getBoundingClientRect().height)"
    )
    assert len(letters) > 50
    assert min(letters) >= 9, "letters in plots can be read"
    outside = browser.execute_script(
        "return [...document.querySelectorAll('.plot svg')].flatMap((svg) => { const frame ="
        " svg.getBoundingClientRect(); return [...svg.querySelectorAll('text')].filter((one) => { const box ="
        " one.getBoundingClientRect(); return box.left < frame.left - 2 || box.right > frame.right + 2 }) })"
        ".map((one) => one.textContent)"
    )
    assert outside == [], "no label is cut off"


def test_filters(browser, made):
    open_page(browser, made)
    every = visible_kinds(browser)
    assert set(every) == set(KINDS)
    for kind in KINDS:
        choose_kind(browser, kind)
        assert visible_kinds(browser) == [kind] * every.count(kind)
        assert browser.find_element("css selector", ".filters output").text == (
            f"{every.count(kind)} of {len(every)} images"
        )
    choose_kind(browser, "")
    from selenium.webdriver.support.ui import Select

    views = Select(browser.find_element("name", "view"))
    assert [option.text for option in views.options] == ["all", "AP", "PA", "other or unknown"]
    views.select_by_visible_text("PA")
    shown = [tile for tile in browser.find_elements("css selector", ".tiles > li") if tile.is_displayed()]
    assert 0 < len(shown) < len(every)
    assert all("view PA" in tile.text for tile in shown)


def test_boxes_are_in_the_right_place_and_can_be_hidden(browser, made):
    """The first image's true box, in pixels on the screen, is compared with the labels."""
    open_page(browser, made)
    tile = browser.find_element("css selector", '.tiles > li[data-kind="best"]')
    name = tile.find_element("tag name", "code").text
    labels = pd.read_csv(made.parents[2] / "input/stage_2_train_labels.csv", dtype={"patientId": str})
    true = labels[labels["patientId"] == name].sort_values("x")[["x", "y", "width", "height"]].to_numpy()
    places = browser.execute_script(
        "const at = (one) => { const box = one.getBoundingClientRect(); return [box.x, box.y, box.width, box.height] };"
        "const tile = arguments[0]; return [at(tile.querySelector('img')),"
        " [...tile.querySelectorAll('rect.true')].map(at)]",
        tile,
    )
    (x, y, width, height), boxes = places[0], np.array(sorted(places[1]))
    expected = true / 1024 * [width, height, width, height] + [x, y, 0, 0]
    assert boxes == pytest.approx(expected, abs=1.5)
    assert tile.find_element("css selector", "rect.predicted").is_displayed()
    browser.find_element("name", "boxes").click()
    assert not tile.find_element("css selector", "rect.predicted").is_displayed()


def test_enlarging_with_the_mouse(browser, made):
    open_page(browser, made)
    viewer = browser.find_element("id", "viewer")
    assert not viewer.is_displayed()
    small = browser.find_element("css selector", ".tiles .open")
    before = small.size["width"]
    small.click()
    assert viewer.is_displayed()
    assert viewer.find_element("tag name", "img").size["width"] > 2 * before
    frame = browser.execute_script("const b = arguments[0].getBoundingClientRect(); return [b.top, b.bottom]", viewer)
    assert frame[0] >= 0
    assert frame[1] <= DESK[1], "the whole of it fits on the screen"
    first = viewer.find_element("css selector", ".words").text
    viewer.find_element("css selector", '[data-step="1"]').click()
    assert viewer.find_element("css selector", ".words").text != first
    viewer.find_element("css selector", "[data-close]").click()
    assert not viewer.is_displayed()


def test_everything_with_the_keyboard_alone(browser, made):
    """Tab to an image, Enter, arrows through the filtered images and around, Escape back to the image."""
    from selenium.webdriver.common.keys import Keys

    open_page(browser, made)
    choose_kind(browser, "missed")
    n_shown = len(visible_kinds(browser))
    assert n_shown > 2
    browser.execute_script("document.querySelector('.filters [name=boxes]').focus()")
    press(browser, Keys.TAB)
    ring = browser.execute_script(
        "const one = document.activeElement; const style = getComputedStyle(one);"
        "return [one.className, style.outlineStyle, parseFloat(style.outlineWidth)]"
    )
    assert ring[:2] == ["open", "solid"]
    assert ring[2] >= 2, "the focus is visible"
    press(browser, Keys.ENTER)
    viewer = browser.find_element("id", "viewer")
    position = viewer.find_element("css selector", ".position")
    assert position.text == f"1 of {n_shown}"
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert position.text == f"3 of {n_shown}"
    assert viewer.find_element("css selector", ".words").text.startswith("missed")
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert position.text == f"{n_shown} of {n_shown}", "before the first comes the last"
    last = viewer.find_element("css selector", "code").text
    press(browser, Keys.ESCAPE)
    assert not viewer.is_displayed()
    focused = browser.execute_script("return document.activeElement.closest('li')?.querySelector('code').textContent")
    assert focused == last


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)", as WCAG defines it."""
    parts = np.array([float(value) for value in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_light_and_dark(browser, made, scheme):
    """At least 4.5 to 1 for text and 3 to 1 for curves, against the background."""
    open_page(browser, made, scheme=scheme)
    found = browser.execute_script(
        "const behind = (one) => { for (let at = one; at; at = at.parentElement) { const colour ="
        " getComputedStyle(at).backgroundColor; if (!/, 0\\)$/.test(colour)) return colour }; return '' };"
        "const pairs = (rule, key) => [...document.querySelectorAll(rule)].map((one) => [getComputedStyle(one)[key],"
        " behind(one), one.tagName + ' ' + (one.textContent || '').trim().slice(0, 30)]);"
        "return [pairs('p, h1, h2, h3, dt, dd, th, td, caption, a, code, label', 'color')"
        ".concat(pairs('.plot svg text', 'fill')), pairs('.plot svg g[id*=line2d] > path[clip-path]', 'stroke')]"
    )

    def contrast(pair):
        bright, dim = sorted(map(luminance, pair[:2]), reverse=True)
        return (bright + 0.05) / (dim + 0.05)

    text, curves = found
    assert len(text) > 200
    assert [pair for pair in text if contrast(pair) < 4.5] == []
    # grid lines have an id too, and are meant to stay in the background
    drawn = [pair for pair in curves if pair[0].startswith("rgb(")]
    assert len(drawn) >= 8
    assert [pair for pair in drawn if contrast(pair) < 3] == []
    shades = browser.execute_script(
        "const probe = document.querySelector('.plot p'); return ['blue', 'red', 'green', 'pink', 'orange', 'sky']"
        ".map((name) => { probe.style.color = `var(--${name})`; return [getComputedStyle(probe).color,"
        " getComputedStyle(document.querySelector('.plot')).backgroundColor, name] })"
    )
    assert [pair for pair in shades if contrast(pair) < 3] == []
    dark = luminance(browser.execute_script("return getComputedStyle(document.body).backgroundColor")) < 0.2
    assert dark == (scheme == "dark")


def test_the_printed_page_is_light_and_complete(browser, made):
    open_page(browser, made, scheme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert luminance(browser.execute_script("return getComputedStyle(document.body).backgroundColor")) > 0.9
    assert not browser.find_element("css selector", ".filters").is_displayed()
    assert browser.find_element("css selector", ".tiles img").is_displayed()
    pages = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    assert len(pages["data"]) > 100_000


def test_the_large_page_opens_and_filters(browser, large):
    open_page(browser, large, PHONE)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    choose_kind(browser, "worst")
    assert visible_kinds(browser) == ["worst"] * PER_KIND


def test_without_scripts_every_image_is_shown(browser, made):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(browser, made)
        assert set(visible_kinds(browser)) == set(KINDS)
        assert not browser.find_element("css selector", ".filters").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
