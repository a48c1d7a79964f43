"""The HTML page: well formed, self-contained, escaped, and right in its numbers."""

import base64
import dataclasses
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from utils.report import Gallery, GalleryClip, Report, render_report, write_report
from utils.report_tables import ReportGroup, ReportGrouping, ReportRow, ReportTable
from utils.reports.visualisation import encode_jpeg
from utils.success_plot import PLOT_BOTTOM, PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, SuccessCurve

VOID_TAGS = {"meta", "img", "link", "br", "hr", "input"}


class PageReader(HTMLParser):
    """Checks that tags are balanced and collects attributes and text."""

    def __init__(self):
        super().__init__()
        self.open_tags = []
        self.elements = []
        self.texts = []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read_page(page):
    reader = PageReader()
    reader.feed(page)
    reader.close()
    assert reader.open_tags == []
    return reader


NAN = float("nan")
INTERVALS = ((36.1, 41.2), (38.3, 40.9), (36.6, 39.2), None)


def make_grouping(title, count):
    groups = [
        ReportGroup(
            f"{title} {index}",
            20 * index + 11,
            index == 0,
            (70.0 - index, 61.0, 62.0, NAN),
            ((51.5, 88.5), None, (60.0, 64.0), None),
            best_blind=33.25,
            ceiling=99.5,
        )
        for index in range(count)
    ]
    return ReportGrouping(title, "SLAVC's <classes>", groups)


@pytest.fixture
def report():
    picture = encode_jpeg(np.full((24, 32, 3), (200, 60, 20), np.uint8))
    return Report(
        title="SSL-TIE on VGG-SS",
        facts={"clips": "8", "protocol": "median", "homepage": "https://example.org/a?b=1&c=2"},
        warnings=["2 of 10 clips have no frame."],
        tables=[
            ReportTable(
                "median",
                "upper half of each map",
                [
                    ReportRow("SSL-TIE", 38.64, 39.6, 37.9, NAN, "model", INTERVALS),
                    ReportRow("centre box", 30.14, 41.1, 31.4, 44.0, "baseline"),
                    ReportRow("14 x 14 grid", 97.2, 88.4, 86.0, 99.8, "ceiling"),
                ],
                [
                    SuccessCurve("SSL-TIE", [0.0, 0.5, 1.0], [100.0, 40.0, 0.0], "model"),
                    SuccessCurve("centre box", [0.0, 1.0], [90.0, 10.0], "baseline"),
                    SuccessCurve("14 x 14 grid", [0.0, 1.0], [100.0, 100.0], "ceiling"),
                ],
                [make_grouping("By box size", 2), make_grouping("By class", 11)],
            )
        ],
        galleries=[
            Gallery("Best", [GalleryClip("abc_000001", 0.914, [picture, picture], "easy")]),
            Gallery("Worst", [GalleryClip("def_000002", float("nan"), [picture], "")]),
        ],
    )


def test_page_is_well_formed_and_shows_everything(report):
    reader = read_page(render_report(report))
    shown = " ".join(reader.texts)
    expected = [report.title, "38.6", "+8.5 points", "\N{MINUS SIGN}1.5 points", *report.facts.values()]
    expected += [*report.warnings, "abc_000001", "cIoU 0.91", "easy", "Best", "Worst", "14 x 14"]
    for text in expected:
        assert text in shown, text


def test_page_needs_no_network(report):
    page = render_report(report)
    for _, attributes in read_page(page).elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert "script" not in attributes
    assert not re.search(r"url\(|@import|<script |<link|<iframe|fetch\(|import ", page)


def test_only_the_page_s_own_script_may_run(report):
    page = render_report(report)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [
        attributes["content"]
        for attributes in read_page(page).all("meta")
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy and policy.count("unsafe-inline") == 1


def tables_of(page):
    """Each table of scores: its column names, and its rows of sorting values or texts."""
    tables = []
    for table in re.findall(r'<table class="scores sortable">(.*?)</table>', page, re.DOTALL):
        names = re.findall(r"<th [^>]*>([^<]*)</th>", table.split("</thead>")[0])
        rows = [
            re.findall(r'<td class="number"(?: data-value="([^"]*)")?>', row)
            for row in table.split("<tbody>")[1].split("<tr")[1:]
        ]
        tables.append((names, rows))
    return tables


def test_cells_carry_what_they_are_sorted_by(report):
    scores, sizes, classes = tables_of(render_report(report))
    assert scores[0] == ["Name", "cIoU@0.5", "", "AUC", "mean cIoU", "Pointing"]
    assert scores[1][0] == ["38.640000", "39.600000", "37.900000", ""]
    assert sizes[0][:5] == ["Group", "Clips", "cIoU@0.5", "", "Best blind"]
    assert sizes[1][1] == ["31", "69.000000", "33.250000", "99.500000", "61.000000", "62.000000", ""]
    assert len(classes[1]) == 11


CLICKS = """<script>
const [scores, sizes] = document.querySelectorAll("table.sortable");
function firstCells(table, column) {
  table.tHead.rows[0].cells[column].firstChild.click();
  return Array.from(table.tBodies[0].rows, (row) => row.cells[0].firstChild.textContent).join();
}
const seen = [[scores, 1], [scores, 1], [scores, 5], [scores, 5], [scores, 0], [sizes, 1]];
document.body.dataset.seen = seen.map(([table, column]) => firstCells(table, column)).join("; ");
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium")
def test_columns_are_sorted_by_a_click_and_the_browser_does_not_complain(report, tmp_path):
    def browse(page):
        (tmp_path / "page.html").write_text(page)
        command = "chromium --headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
        finished = subprocess.run(
            [*command.split(), (tmp_path / "page.html").as_uri()],
            capture_output=True,
            check=True,
            text=True,
            timeout=120,
        )
        assert "CONSOLE" not in finished.stderr
        return finished.stdout

    page = render_report(report)
    assert browse(page).count("<button") == 5 + 2 * 8
    free = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", CLICKS + "</body>")
    (seen,) = re.findall('data-seen="([^"]*)"', browse(free))
    assert seen.split("; ") == [
        "14 x 14 grid,SSL-TIE,centre box",
        "centre box,SSL-TIE,14 x 14 grid",
        "14 x 14 grid,centre box,SSL-TIE",  # without a value: last, either way
        "centre box,14 x 14 grid,SSL-TIE",
        "14 x 14 grid,centre box,SSL-TIE",
        "By box size 1,By box size 0",
    ]


def test_intervals_stand_below_their_scores(report):
    page = render_report(report)
    dash = "\N{EN DASH}"
    assert f'38.6<span class="interval">36.1{dash}41.2</span></td>' in page
    assert f"95 % interval 36.1{dash}41.2" in page[: page.index("<h2>Scores</h2>")]
    assert '<rect class="spread" x="36.1" y="3" width="5.1" height="2"/>' in page
    assert page.count('class="interval"') == 3 + 2 * (2 + 11)
    rows = [dataclasses.replace(row, intervals=(None,) * 4) for row in report.tables[0].rows]
    table = dataclasses.replace(report.tables[0], rows=rows, groupings=[])
    bare = render_report(dataclasses.replace(report, tables=[table]))
    assert 'class="interval"' not in bare and 'class="spread"' not in bare


def test_groups_are_marked_and_long_tables_folded(report):
    page = render_report(report)
    assert page.count('<details class="panel groups" open>') == 1
    assert page.count('<details class="panel groups">') == 1
    assert page.index("By box size") < page.index("By class")
    assert page.count('<span class="kind few">few clips</span>') == 2
    assert "SLAVC&#x27;s &lt;classes&gt;" in page


def test_pictures_decode(report):
    images = read_page(render_report(report)).all("img")
    assert [image["alt"] for image in images] == ["abc_000001", "abc_000001", "def_000002"]
    for image in images:
        header, content = image["src"].split(",")
        assert header == "data:image/jpeg;base64"
        buffer = np.frombuffer(base64.b64decode(content, validate=True), np.uint8)
        picture = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB)
        assert picture.shape == (24, 32, 3)
        assert np.abs(picture.astype(int) - (200, 60, 20)).max() < 8


def test_every_text_is_escaped(report):
    nasty = "<script>alert('$title')</script>\"&"
    clip = GalleryClip(nasty, 0.5, report.galleries[0].clips[0].pictures, nasty)
    changed = Report(
        title=nasty,
        facts={"clips": nasty, "protocol": nasty, nasty: nasty},
        warnings=[nasty],
        tables=[
            ReportTable(
                nasty,
                nasty,
                [ReportRow(nasty, 1, 2, 3, 4, "model")],
                [SuccessCurve(nasty, [0, 1], [1, 0], "model")],
                [
                    ReportGrouping(
                        nasty, nasty, [ReportGroup(nasty, 3, False, (1, 2, 3, 4), (None,) * 4, 5, 6)]
                    )
                ],
            )
        ],
        galleries=[Gallery(nasty, [clip])],
    )
    page = render_report(changed)
    assert page.count("<script") == 1
    reader = read_page(page)
    assert {image["alt"] for image in reader.all("img")} == {nasty}
    assert "".join(reader.texts).count(nasty) == 21


def test_nan_is_a_dash(report):
    page = render_report(report)
    assert "nan" not in " ".join(read_page(page).texts).lower().split()
    assert page.count('<td class="number">\N{EN DASH}</td>') == 1 + 2 + 11
    assert "cIoU \N{EN DASH}" in page


def test_curve_points_have_the_right_coordinates(report):
    lines = {
        line["class"]: [tuple(map(float, point.split(","))) for point in line["points"].split()]
        for line in read_page(render_report(report)).all("polyline")
    }
    assert len(lines) == 3
    (model,) = [points for style, points in lines.items() if "model" in style.split()]
    middle = (PLOT_LEFT + PLOT_RIGHT) / 2
    at_40_percent = PLOT_BOTTOM - 0.4 * (PLOT_BOTTOM - PLOT_TOP)
    expected = [(PLOT_LEFT, PLOT_TOP), (middle, at_40_percent), (PLOT_RIGHT, PLOT_BOTTOM)]
    np.testing.assert_allclose(model, expected, atol=0.01)
    (baseline,) = [style for style in lines if "baseline" in style.split()]
    assert "dash-" in baseline


def test_models_are_drawn_last_and_named_first(report):
    page = render_report(report)
    assert 'class="curve model' in page[page.rindex("<polyline") :]
    legend = page[page.index('<ul class="legend">') :]
    assert legend.index("SSL-TIE") < legend.index("centre box")


def test_each_rule_has_its_labelled_table_and_curves(report):
    (first,) = report.tables
    rows = [ReportRow("SSL-TIE", 12.3, 4.5, 6.7, 8.9, "model")]
    second = dataclasses.replace(first, name="fixed", rule="at least one half", rows=rows)
    page = render_report(dataclasses.replace(report, tables=[first, second]))
    reader = read_page(page)
    plots = [svg["aria-label"] for svg in reader.all("svg") if svg.get("class") == "plot"]
    assert plots == ["Success curves, protocol median", "Success curves, protocol fixed"]
    assert len([table for table in reader.all("table") if table.get("class") == "scores sortable"]) == 2 * 3
    marks = ["<code>median</code>", "upper half", ">38.6<", plots[0], "By box size"]
    marks += ["<code>fixed</code>", "at least one half", ">12.3<", plots[1]]
    places = [page.index(mark, page.index("<h2>Scores</h2>")) for mark in marks]
    assert places == sorted(places)
    header = page[: page.index("<h2>Scores</h2>")]
    assert "38.6" in header and "12.3" not in header


def test_empty_sections_are_left_out(report):
    rows = report.tables[0].rows[:1]
    table = dataclasses.replace(report.tables[0], curves=[], rows=rows, groupings=[])
    bare = dataclasses.replace(report, warnings=[], galleries=[], tables=[table])
    page = render_report(bare)
    read_page(page)
    for mark in ("<polyline", "<img", '<div class="warnings"', "points against", "<details"):
        assert mark not in page


def test_colours_and_dashes_of_the_code_are_in_the_style_sheet(report):
    page = render_report(report)
    for line in read_page(page).all("polyline"):
        for style in line["class"].split():
            if style != "baseline":
                assert f".{style}" in page[: page.index("</style>")]


def test_write_report_is_atomic(report, tmp_path):
    path = tmp_path / "results" / "report.html"
    write_report(path, report)
    write_report(path, dataclasses.replace(report, title="Second"))
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    assert "<h1>Second</h1>" in path.read_text(encoding="utf-8")


def test_nonsense_is_refused_in_words(report):
    with pytest.raises(ValueError, match=r"kind of 'x' must be one of .*got 'oracle'"):
        ReportRow("x", 1, 2, 3, 4, "oracle")
    with pytest.raises(ValueError, match="'x' has 2 thresholds and 1 rates"):
        SuccessCurve("x", [0, 1], [1], "model")
    with pytest.raises(ValueError, match=r"rates must be in \[0, 100\]"):
        SuccessCurve("x", [0, 1], [float("nan"), 1], "model")
    with pytest.raises(ValueError, match=r"lack \['protocol'\]"):
        dataclasses.replace(report, facts={"clips": "8"})
    with pytest.raises(ValueError, match="needs a row of kind 'model'"):
        dataclasses.replace(report.tables[0], rows=report.tables[0].rows[1:])
    with pytest.raises(ValueError, match="needs a table of scores"):
        dataclasses.replace(report, tables=[])
