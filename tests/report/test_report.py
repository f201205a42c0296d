import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import bayesarch as ba
from bayesarch.errors import RunError
from bayesarch.report import page as pages
from bayesarch.report import plots, write_ensemble_report, write_report
from bayesarch.report.amounts import amount, counted, duration, score, tick
from bayesarch.runs import RunFolder
from bayesarch.terminal import print_evaluation
from helpers import jobs_here


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ba.search("planted", space="toy", out=tmp_path_factory.mktemp("report") / "run")


def page(run) -> str:
    return (Path(run.path) / "report.html").read_text()


def test_numbers_as_people_read_them():
    assert [amount(v) for v in (0, 999, 1000, 1.35e6, 2.98e11)] == ["0", "999", "1.00 k", "1.35 M", "298.00 G"]
    assert amount(2e9, "B") == "2.00 GB"
    assert [tick(v) for v in (0.5, 32, 500_000, 1.5e6, 2e9)] == ["0.5", "32", "500 k", "1.5 M", "2 G"]
    assert [counted(n, "run") for n in (0, 1, 2, 1000)] == ["0 runs", "1 run", "2 runs", "1,000 runs"]
    assert [score(v) for v in (0, 0.98765, 1e-3, 4.06e-5, -2e-4)] == [
        "0.0000",
        "0.9877",
        "0.0010",
        "4.1e-05",
        "-2.0e-04",
    ]
    assert [duration(s) for s in (89, 90, 5399, 5400)] == ["89 s", "2 min", "90 min", "1.5 h"]


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(("costs", "scale"), [((1e5, 2.9e5), "linear"), ((1e5, 3e5), "log"), ((0, 4), "linear")])
def test_amounts_are_drawn_logarithmically_where_they_differ_threefold(costs, scale, which):
    axes = Figure().subplots()
    axes.plot(*((costs, (0, 1)) if which == "x" else ((0, 1), costs)))
    plots.amounts(axes, which)
    mine, other = (axes.xaxis, axes.yaxis) if which == "x" else (axes.yaxis, axes.xaxis)
    assert mine.get_scale() == scale
    assert other.get_scale() == "linear"
    assert mine.get_major_formatter()(2e5) == "200 k"
    assert other.get_major_formatter()(2e5) != "200 k"


def test_a_picture_is_as_large_as_what_is_drawn():
    """As matplotlib finds it by drawing everything twice, but for the width of letters; nothing is cut off."""
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.set(title="a title far wider than the figure that it stands above of, on both sides", ylabel="y")
    figure.tight_layout()
    whole = io.StringIO()
    figure.savefig(whole, format="svg", bbox_inches="tight")
    sizes = [
        [float(n) for n in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()]
        for text in (plots.svg(figure), whole.getvalue())
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    assert sizes[0][0] > 3 * 72 + 50


def test_losses_that_fall_far_have_plain_labels():
    rows = [{"steps": i, "weights_loss": 2.0 / 4**i, "selection_accuracy": 0.5} for i in range(3)]
    drawn = plots.learning(rows)
    assert all(f">{label}<" in drawn for label in ("0.2", "0.5", "1"))
    assert "mathdefault" not in drawn


def test_a_notation_breaks_between_edges_and_stays_text():
    assert pages._breaking("|a<b~0|+|c~1|") == "|<wbr>a&lt;b~0|<wbr>+|<wbr>c~1|<wbr>"


def test_equal_cells_are_drawn_once(run):
    edges, texts = run.summary["edges"], ("x", "y", "x")
    drawn = pages._drawn([{"path": str(i), "text": text, "edges": edges} for i, text in enumerate(texts)])
    assert [(d["text"], d["paths"]) for d in drawn] == [("x", ["0", "2"]), ("y", ["1"])]
    assert drawn[0]["drawing"].startswith("<svg")


class Tags(HTMLParser):
    """Counts tags, collects what is loaded from elsewhere, and checks that tags are closed in order."""

    VOID = ("meta", "br", "path", "use", "rect", "link", "circle", "image", "wbr")

    def __init__(self):
        super().__init__()
        self.count, self.open, self.loaded = {}, [], []

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        for name, value in attributes:
            if name in ("src", "xlink:href", "href") and not (value or "").startswith("#"):
                self.loaded.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(run):
    tags = Tags()
    tags.feed(page(run))
    assert tags.open == []
    assert tags.count["svg"] == 4
    assert tags.loaded == []
    assert "@import" not in page(run)


def test_the_page_says_what_the_summary_says(run):
    text, summary = page(run), run.summary
    assert summary["cell"] in text
    assert f"{summary['params']:,}" in text
    assert f"{100 * summary['selection_accuracy']:.1f} %" in text
    assert f"n = {summary['selection_n']}" in text
    assert "relative weight" in text
    assert "The test split has not been read" in text
    assert "delta: 0.05" in text
    assert run.data["fingerprint"]["content"] in text
    for cause in ("threshold", "inactive", "cap"):
        assert re.search(rf"removed by.*\b{cause} {summary['fired_by'][cause]}\b", text)


def test_equal_runs_draw_equal_pictures(run):
    metrics, edges = run.metrics, run.summary["edges"]
    assert plots.cell(edges) == plots.cell(edges)
    assert plots.pruning(metrics) == plots.pruning(metrics)
    other = [{**edge, "options": ["none"], "zero": True} for edge in edges]
    assert plots.cell(other) != plots.cell(edges)


def test_the_heatmap_shows_every_weight(run):
    weights = run.posterior.weights()
    svg = plots.heatmap(weights, run.summary["edges"], "relative weight")
    for row in weights.values():
        for value in row.values():
            assert f">{value:.2f}<" in svg


def test_an_inactive_edge_is_called_inactive():
    edge = {"choice": "2<-1", "cell": "cell", "source": "1", "target": "2", "options": ["product"], "zero": False}
    svg = plots.cell([{**edge, "inactive": True}])
    assert "inactive" in svg
    assert "product" not in svg


def test_a_page_needs_a_finished_run(tmp_path):
    folder = RunFolder.create(tmp_path / "new")
    with pytest.raises(RunError, match=r"summary\.json is missing"):
        write_report(folder)
    assert not folder.has("report.html")


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    settings = {"engine.epochs": 2, "engine.closing_epochs": 0}
    out = tmp_path_factory.mktemp("report") / "repeated"
    with jobs_here():
        return ba.search("planted", space="toy", method="darts", repeats=3, limit=300, out=out, set=settings)


def test_the_page_of_repeats_is_whole_and_says_what_was_counted(repeated):
    tags = Tags()
    tags.feed(page(repeated))
    assert tags.open == []
    assert tags.count["svg"] == 3
    assert tags.loaded == []
    for edge in repeated.summary["edges"]:
        for row in edge["shares"].values():
            if row["share"] > 0:
                low, high = row["interval_90"]
                assert f"{low:.2f} – {high:.2f}" in page(repeated)


@pytest.fixture
def chromium():
    """A page in headless Chromium without network, or a skip that says so."""
    place = shutil.which("chromium") or shutil.which("chromium-browser")
    if place is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=flags)
        yield browser
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["repeats", "comparison"])
def test_other_pages_in_a_real_browser(kind, width, repeated, chromium, tmp_path):
    place, table, rows = Path(repeated.path) / "report.html", "#runs", 3
    if kind == "comparison":
        place, table, rows = tmp_path / "comparison.html", "#groups", 1
        ba.compare([repeated.path], out=place)
    tab = chromium.new_page(viewport={"width": width, "height": 800})
    troubles = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.goto(place.as_uri())
    assert troubles == []
    assert tab.locator(f"{table} tbody tr").count() == rows
    assert tab.locator("svg").first.bounding_box()["width"] > 200
    assert tab.evaluate("document.documentElement.scrollWidth") <= width


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    place = tmp_path_factory.mktemp("several")
    sizes = {"space.channels": 4, "engine.epochs": 1, "engine.closing_epochs": 0}
    found = ba.search("digits", method="gdas", limit=400, set=sizes, out=place / "search")
    given = {"train.epochs": 1}
    with jobs_here():
        made = ba.ensemble(found, members=2, candidates="neighbours", set=given, out=place / "ensemble")
    ba.export(made, format="source")
    return made


def test_a_small_score_keeps_its_digits_in_the_table_and_on_the_page(several, tmp_path, capsys):
    run = ba.open_run(shutil.copytree(several.path, tmp_path / "copy"))
    record = run.folder.read_json("evaluation.json")
    record["rows"][0]["aurc"] = {"value": 4.06e-5, "low": 0.0, "high": 8.13e-5}
    run.folder.write_json("evaluation.json", record)
    print_evaluation(run)
    assert "4.1e-05" in capsys.readouterr().out
    write_ensemble_report(run.folder, [np.zeros((8, 8, 1), np.uint8)] * 12)
    page = (tmp_path / "copy" / "report.html").read_text()
    assert "4.1e-05<br>" in page
    assert "(0.0000 to 8.1e-05)" in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_an_ensemble_in_a_real_browser(several, width, chromium):
    tab = chromium.new_page(viewport={"width": width, "height": 800})
    troubles, requests = [], []
    tab.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url) if request.url.startswith("http") else None)
    tab.goto((Path(several.path) / "report.html").as_uri())
    assert troubles == requests == []
    assert tab.locator("#scores tbody tr").count() == 7
    assert tab.locator("#exports tbody tr").count() == 1
    assert tab.locator("#cost tbody tr").count() == 4
    assert tab.locator("svg").count() == 6
    assert all(tab.locator("svg").nth(i).bounding_box()["width"] > 150 for i in range(6))
    pictures = tab.locator("#least-sure img")
    assert pictures.count() == 12
    assert pictures.first.evaluate("image => image.naturalWidth") == 96
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    first = several.folder.read_json("evaluation.json")["rows"][0]
    assert f"{first['nll']['value']:.4f}" in tab.inner_text("#scores")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_real_browser(run, width, chromium, tmp_path):
    """No errors, everything visible, nothing wider than the window."""
    tab = chromium.new_page(viewport={"width": width, "height": 800})
    troubles, requests = [], []
    tab.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto((Path(run.path) / "report.html").as_uri())
    assert troubles == []
    assert len(requests) == 1
    assert tab.inner_text("#cell-string") == run.summary["cell"]
    assert tab.locator("#edges tbody tr").count() == 3
    boxes = [tab.locator("svg").nth(i).bounding_box() for i in range(4)]
    assert all(box["width"] > 200 and box["height"] > 60 for box in boxes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.locator("summary").first.click()
    assert tab.locator("details pre").first.is_visible()
    tab.screenshot(path=str(tmp_path / "page.png"), full_page=True)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory):
    given = {
        "train.epochs": 2, "compress.dense_epochs": 4, "compress.finetune_epochs": 2, "compress.at_most": 0.3,
        "compress.growth": 3.0, "compress.curvature_examples": 300,
    }  # fmt: skip
    out = tmp_path_factory.mktemp("smaller") / "run"
    return ba.compress("lenet-300-100", "digits", max_macs=25_000, set=given, out=out)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_a_smaller_network_in_a_real_browser(smaller, width, chromium):
    tab = chromium.new_page(viewport={"width": width, "height": 800})
    troubles = []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.goto((Path(smaller.path) / "report.html").as_uri())
    assert troubles == []
    assert tab.locator("#scores tbody tr").count() == tab.locator("#costs tbody tr").count() == 2
    assert tab.locator("#layers tbody tr").count() == 3
    assert tab.locator("svg").count() == 2
    assert f"{smaller.summary['macs']:,}" in tab.inner_text("#costs")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
