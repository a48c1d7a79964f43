"""What an evaluation leaves: summary, clips, tables in four forms, and a page that needs no network.

The files of two made-up evaluations are in goldens/report, written by

    PYTHONPATH=. python tests/test_reports.py
"""

import base64
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from chromium import open_tab
from golden_inputs import GOLDENS
from pandas.testing import assert_frame_equal
from result_inputs import SHA256, make_context, make_result

from datasets.benchmarks import DATA_SETS
from datasets.lists import find_leak
from utils.evaluation.metrics import SUCCESS_THRESHOLDS
from utils.evaluation.protocols import PROTOCOLS
from utils.reports.localisation import choose_clips, localisation_report, success_plot
from utils.reports.report import (
    Card,
    Gallery,
    ScoreTable,
    Section,
    check_results_folder,
    render_page,
    render_table,
    screen_table,
    write_report,
)
from utils.reports.visualisation import encode_jpeg

NAN = math.nan
LABELS = {"path": "labels.csv", "sha256": "ef" * 32}
NASTY = 'a_b & 5 % | #1 $x$ {y} ~^ \\\\ <i> "q" [z] *s* `c`\n\nend'
IDENTITY = {
    "task": "localisation", "benchmark": "vgg_ss", "protocol": ["ssl_tie", "sspl"], "checkpoint": SHA256,
}  # fmt: skip
PUBLISHED = {name: {"cut": None, "is_scored": False, "words": f"<{name}> published"} for name in PROTOCOLS}


def test_paths_in_another_encoding_cost_no_results(tmp_path):
    write_report(tmp_path, make_report(data_root="data/caf\udce9"))
    assert {"summary.json", "report.html", "table.md"} <= {path.name for path in tmp_path.iterdir()}
    assert r"data/caf\udce9" in (tmp_path / "summary.json").read_text()


def make_report(result=None, benchmark="vgg_ss", **changes):
    result = make_result() if result is None else result
    context = make_context(benchmark=benchmark, **changes)
    return localisation_report(result, context, DATA_SETS[benchmark], PUBLISHED, IDENTITY)


def with_classes(**changes):
    result = make_result((0.75, 0.25, 0.5, 0.1))
    result.clips["class"] = ["harp", "dog", "harp", "dog"] * 8
    return make_report(result, labels=LABELS, **changes)


def extended():
    """Two of four clips have no object."""
    result = make_result()
    result.clips["has_object"] = ~result.clips["clip_id"].isin(["clip_1", "clip_3"])
    result.clips["num_boxes"] = result.clips["has_object"].astype(float)
    return make_report(result, benchmark="vgg_ss_extended")


# ----------------------------------------------------------------------------------------- files


def frozen_reports():
    leak = find_leak(["clip_0"], [f"clip_{index}" for index in range(4)], purpose="test")
    missing = ("clip_8 (no frame)", "clip_9")
    nasty = with_classes(num_listed=6, missing=missing, leak=leak, note=NASTY)
    return {"nasty": nasty, "extended": extended()}


def write_files(folder, report):
    write_report(folder, report)
    (folder / "screen.txt").write_text(screen_table(report.caption, report.tables, report.rules) + "\n")


def same(found, expected):
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == (pytest.approx(expected) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("name", ["nasty", "extended"])
def test_files_hold_what_they_held(tmp_path, name):
    write_files(tmp_path, frozen_reports()[name])
    golden = GOLDENS / "report" / name
    assert {path.name for path in tmp_path.iterdir()} == {*(f.name for f in golden.iterdir()), "report.html"}
    summary, expected = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, golden))
    assert same(summary, expected)
    for table in ("per_clip.csv", "table.csv"):
        assert b"\r" not in (tmp_path / table).read_bytes()
        assert_frame_equal(pd.read_csv(tmp_path / table), pd.read_csv(golden / table))
    for text in ("table.md", "table.tex", "screen.txt"):
        assert (tmp_path / text).read_text() == (golden / text).read_text()


def test_nan_of_a_clip_stays_out_of_the_summary(tmp_path):
    report = make_report(make_result((NAN, 1.0, NAN)), num_listed=3)
    write_report(tmp_path, report)
    assert report.summary["cIoU@0.5"] == report.summary["mean_cIoU"] == pytest.approx(100 / 3)
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    assert report.clips["ssl_tie:ciou"].tolist() == ["nan", "1.000000", "nan"]
    assert report.clips["ssl_tie:success"].tolist() == ["0", "1", "0"]
    score = {**make_context().checkpoint, "selection": {"score": math.inf}}
    with pytest.raises(ValueError):
        write_report(tmp_path / "new", make_report(checkpoint=score))
    assert not (tmp_path / "new" / "summary.json").exists()


def test_another_evaluations_folder_is_refused(tmp_path):
    check_results_folder(tmp_path / "nowhere", IDENTITY)
    write_report(tmp_path, make_report())
    check_results_folder(tmp_path, IDENTITY)
    for name, value in (("benchmark", "is3"), ("protocol", ["sspl", "ssl_tie"]), ("checkpoint", "f" * 64)):
        with pytest.raises(FileExistsError, match=rf"another evaluation \(another {name}\).*--output"):
            check_results_folder(tmp_path, IDENTITY | {name: value})
    for content in (b"", b"{}", b"[1]", b"null", b"\xff\xfe", b'{"identity": null}'):
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"summary\.json .*--output"):
            check_results_folder(tmp_path, IDENTITY)


# -------------------------------------------------------------------------------------- warnings

TORN = ("torn", "frame/torn.jpg cannot be read")
DISTRUST = {
    "2 of 6 listed clips are missing or broken and not scored, first: clip_9 (no frame)":
        {"missing": ("clip_9 (no frame)", "clip_8"), "num_listed": 6},
    "1 clips could not be decoded and are not scored, first: frame/torn.jpg cannot": {"num_listed": 5},
    "LEAK: 1 of 2": {"leak": find_leak(["clip_0"], ["clip_0", "clip_1"], purpose="test")},
    "could not be checked": {"leak": find_leak(None, ["clip_0"], purpose="test")},
    "CHOSEN ON TEST: this epoch was picked as the best on 4 of": {"num_chosen_on": 4},
    "No clip list was given": {"clip_list": "every clip found"},
    "CONTROL: each frame": {"audio": "shuffled"},
    "60% those of an object prior": {"object_prior": 0.4},
    "random weights (--random-init)": {"checkpoint": {**make_context().checkpoint, "random_encoders": True}},
}  # fmt: skip


@pytest.mark.parametrize("words", DISTRUST)
def test_reasons_for_distrust_stand_everywhere(tmp_path, words):
    result = make_result(unreadable=[TORN] if "decoded" in words else [])
    report = make_report(result, **DISTRUST[words])
    write_report(tmp_path, report)
    (warning,) = report.summary["warnings"]
    assert words in warning
    for name in ("report.html", "table.md", "table.tex", "table.csv"):
        text = html.unescape((tmp_path / name).read_text()).replace("\\", "")
        assert words.replace("_", "") in text.replace("_", ""), name
    incomplete = "missing" in DISTRUST[words] or bool(result.unreadable)
    assert report.summary["complete"] is not incomplete
    assert report.summary["unreadable"] == [f"{clip_id}: {reason}" for clip_id, reason in result.unreadable]


def test_complete_and_clean_results_are_not_warned_about():
    report = make_report()
    assert report.summary["warnings"] == [] and 'role="alert"' not in render_page(report)
    lost = make_result()
    lost = replace(lost, maps=lost.maps.clone())
    lost.maps[[0, 2], 3, 4] = NAN
    lost.clips.loc[lost.clips["clip_id"] == "clip_1", "area"] = 0
    empty, wrong = make_report(lost).summary["warnings"]
    assert empty.startswith("1 clips have nothing annotated") and wrong.startswith("2 maps are not finite")


def test_warnings_say_what_is_not_as_published():
    result = make_result()
    result.clips["pair_key"] = ["a", "a", "b", "c"] * 8
    unpublished, alone = make_report(result, benchmark="is3").summary["warnings"]
    assert "the rule ssl_align_adaptive, which was not scored" in unpublished
    assert alone.startswith("2 of 3 frames were scored with one sound only")
    for column, value in (("iou", 0.5), ("f_curve", None)):
        result.clips[column] = [np.zeros(255, np.float32)] * 32 if value is None else value
    report = make_report(result, benchmark="avsbench_s4")
    boxes, by_batch = report.summary["warnings"]
    assert "with masks; SSL-Align's published one is with boxes" in boxes
    assert by_batch.startswith("1 of 1 batches of 5 clips are not")
    assert report.summary["extra_metrics"]["published_under"] is None


# ---------------------------------------------------------------------------------------- the page


class PageReader(HTMLParser):
    """Checks that tags are balanced and collects attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.open_tags, self.elements, self.texts = [], [], []
        self.feed(page)
        self.close()
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br", "hr", "input"):
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


PICTURE = encode_jpeg(np.full((24, 32, 3), (200, 60, 20), np.uint8))


def made_up_page():
    """A page with galleries of both kinds and a table with every kind of cell."""
    table = pd.DataFrame(
        {
            "name": ["SSL-TIE", "centre box", "14 x 14"],
            "kind": ["model", "baseline", "ceiling"],
            "ciou": [38.64, 30.14, 97.2],
            "ciou_low": [36.1, NAN, NAN],
            "ciou_high": [41.2, NAN, NAN],
            "auc": [NAN, 44.0, 99.8],
            "clips": [8, 31, 8],
            "better": "higher",
            "note": ["few clips", "", ""],
        }
    )
    headings = {"clips": "Clips", "ciou": "cIoU@0.5", "auc": "AUC", "better": "better"}
    scores = ScoreTable(table, headings, {"name": "Name"}, "By class", "<hint>", bar="ciou")
    sound = Card("def_000002", "cosine 0.97", [PICTURE], b"MP3", "easy", "hit")
    items = [
        scores,
        replace(scores, scores=pd.concat([table] * 4)),
        Gallery([Card("abc_000001", "cIoU 0.91", [PICTURE, PICTURE], b"MP3")], "Best"),
        Gallery([Card("query_1", "query", [PICTURE], style="query"), sound], row=True, note="Acc@1 100"),
    ]
    sections = [Section("Scores", "Read <this>", items)]
    return replace(make_report(note="<made up>"), sections=sections)


def test_page_is_well_formed_and_shows_everything():
    report = make_report(note="drawn <set>")
    page = render_page(report)
    shown = " ".join(PageReader(page).texts)
    expected = [report.title, "50.0", "-50.0 points".replace("-", "\N{MINUS SIGN}"), *report.facts.values()]
    expected += ["drawn <set>", "results/<a>", SHA256, "squash", "torch 2.11", "centre disc (blind)"]
    for text in expected:
        assert text in shown, text
    for name in ("ssl_tie", "sspl"):
        assert page.count(f"<h3>Protocol <code>{name}</code></h3>") == 1
        assert PROTOCOLS[name].description in html.unescape(page)
        assert f"ceiling of {name}" in page
        assert f'aria-label="Success curves, protocol {name}"' in page
    header = page[page.index("</style>") : page.index("<h2>Scores</h2>")]
    assert ">50.0<" in header and "ssl_tie" in header and ">100.0<" not in header
    assert "By box size" in page and "By class" not in page
    by_class = render_page(with_classes())
    assert by_class.index(">harp<") < by_class.index(">dog<")  # the best class first
    assert by_class.count('<tr class="model">') == 2  # one a protocol, none in the groups
    by_object = render_page(extended())
    assert "2 clips: not in cIoU, AUC, pointing, curves and groups" in by_object
    assert "Metrics of this benchmark" in by_object


def test_page_needs_no_network_and_runs_only_its_own_script():
    page = render_page(made_up_page()) + render_page(with_classes())
    for half in page.split("</html>")[:2]:
        reader = PageReader(f"{half}</html>")
        for _, attributes in reader.elements:
            for name in ("src", "srcset", "action", "poster", "data"):
                assert (attributes.get(name) or "data:").startswith("data:")
        files = ["per_clip.csv", "table.csv", "table.md", "table.tex", "summary.json"]
        assert [link["href"] for link in reader.all("a")] == files and not reader.all("link")
        (script,) = re.findall(r"<script>(.*?)</script>", half, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policies = [m["content"] for m in reader.all("meta") if "http-equiv" in m]
        assert f"script-src 'sha256-{digest}';" in policies[0]
        assert "default-src 'none'" in policies[0] and policies[0].count("unsafe-inline") == 1
    assert not re.search(r"@import|<script |<link|<iframe|fetch\(|import |url\((?!#)", page)


def test_cells_carry_what_they_are_sorted_by_and_their_intervals():
    page = render_page(made_up_page())
    (first, second) = re.findall(r'<table class="scores sortable">(.*?)</table>', page, re.DOTALL)
    assert re.findall(r"<th [^>]*>([^<]*)</th>", first.split("</thead>")[0]) == [
        "Name", "Clips", "cIoU@0.5", "", "AUC", "better",
    ]  # fmt: skip
    rows = [re.findall(r'<td class="number"(?: data-value="([^"]*)")?>', r) for r in first.split("<tr")[2:]]
    assert rows[0] == ["8", "38.640000", "", ""] and rows[1] == ["31", "30.140000", "44.000000", ""]
    dash = "\N{EN DASH}"
    assert f'38.6<span class="interval">36.1{dash}41.2</span></td>' in page
    assert '<rect class="spread" x="36.1" y="3" width="5.1" height="2"/>' in page
    assert page.count('class="interval"') == page.count('class="spread"') == 1 + 4
    assert page.count(f'<td class="number">{dash}</td>') == 1 + 4
    assert "nan" not in " ".join(PageReader(page).texts).lower().split()
    # Long tables are folded, few clips marked.
    assert page.count('<details class="panel groups" open>') == 1
    assert page.count('<details class="panel groups">') == 1
    assert page.count('<span class="kind few">few clips</span>') == 1 + 4
    assert "&lt;hint&gt;" in page and "Read &lt;this&gt;" in page and len(second) > len(first)


def test_results_are_told_apart_by_their_titles():
    others = {"model": "SSPL a", "clip_list": "mine", "audio": "shuffled", "num_listed": 5, "note": "n"}
    titles = {make_report(**changes).title for changes in [{}, *({name: others[name]} for name in others)]}
    assert len(titles) == 6
    assert "SSL-TIE runs, 80 epochs, on vgg_ss: ssl_tie_vgg_ss_4911, 4 clips, wrong sound" in titles


def test_page_links_to_what_lies_around_it(tmp_path):
    for name in ("a & b", "c", "c/d"):
        write_report(tmp_path / name, make_report())
    (tmp_path / "c" / "overlays").mkdir()
    write_report(tmp_path / "c", make_report())
    links = [link["href"] for link in PageReader((tmp_path / "c" / "report.html").read_text()).all("a")]
    assert links[5:] == ["overlays", "d/report.html", "../a%20%26%20b/report.html"]


CLICKS = """<script>
const [scores] = document.querySelectorAll("table.sortable");
function firstCells(column) {
  scores.tHead.rows[0].cells[column].firstChild.click();
  return Array.from(scores.tBodies[0].rows, (row) => row.cells[0].firstChild.textContent.trim()).join();
}
document.body.dataset.seen = [2, 2, 4, 4, 0, 1].map(firstCells).join("; ");
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium")
def test_columns_are_sorted_by_a_click_and_the_browser_does_not_complain(tmp_path):
    def browse(page):
        (tmp_path / "page.html").write_text(page)
        command = "chromium --headless --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
        page_file = (tmp_path / "page.html").as_uri()
        finished = subprocess.run(
            [*command.split(), page_file], capture_output=True, check=True, text=True, timeout=120
        )
        assert "CONSOLE" not in finished.stderr
        return finished.stdout

    page = render_page(made_up_page())
    assert browse(page).count("<button") == 2 * 5 + 2
    free = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", CLICKS + "</body>")
    (seen,) = re.findall('data-seen="([^"]*)"', browse(free))
    assert seen.split("; ") == [
        "14 x 14,SSL-TIE,centre box",
        "centre box,SSL-TIE,14 x 14",
        "14 x 14,centre box,SSL-TIE",  # without a value: last, either way
        "centre box,14 x 14,SSL-TIE",
        "14 x 14,centre box,SSL-TIE",
        "centre box,14 x 14,SSL-TIE",
    ]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium")
def test_a_click_copies_a_table_or_else_selects_it(tmp_path):
    pytest.importorskip("websocket", reason="requirements-dev.txt has it")
    report = made_up_page()
    (tmp_path / "page.html").write_text(render_page(report))
    with open_tab((tmp_path / "page.html").as_uri(), tmp_path / "profile") as tab:
        tab.wait_for("document.querySelectorAll('.files button').length == 2")
        click = "document.querySelector('.files button').click()"
        tab.call("Page.bringToFront")  # only a page in view may copy
        tab.call("Runtime.evaluate", expression=click, userGesture=True)
        tab.wait_for("document.querySelector('.files button').textContent == 'LaTeX copied'")
        tab.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
        assert tab.evaluate("navigator.clipboard.readText()").split() == render_table(report, "tex").split()
        tab.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        tab.evaluate("document.querySelectorAll('.files button')[1].click()")
        assert tab.wait_for("String(getSelection())").startswith("Sound localisation: ")


def test_pictures_and_sounds_lie_in_the_page():
    reader = PageReader(render_page(made_up_page()))
    images = reader.all("img")
    assert [image["alt"] for image in images] == ["abc_000001", "abc_000001", "query_1", "def_000002"]
    assert {image["src"] for image in images} == {
        f"data:image/jpeg;base64,{base64.b64encode(PICTURE).decode()}"
    }
    assert [a["src"] for a in reader.all("audio")] == ["data:audio/mpeg;base64,TVAz"] * 2
    styles = [item.get("class") for item in reader.all("li") if "candidate" in (item.get("class") or "")]
    assert styles == ["candidate query", "candidate hit"]


def test_every_text_is_escaped():
    bad = "<script>alert('$title')</script>\"&"
    result = make_result()
    result.clips["class"] = bad
    result.clips["predictor"] = result.clips["predictor"].replace("model", bad)
    published = {name: {**words, "words": bad} for name, words in PUBLISHED.items()}
    gallery = Gallery([Card(bad, bad, [PICTURE], b"MP3", bad)], bad)
    context = make_context(note=bad, command=bad, num_listed=9, missing=(bad,), labels=LABELS)
    report = localisation_report(result, context, DATA_SETS["vgg_ss"], published, IDENTITY, [gallery])
    page = render_page(report)
    assert page.count("<script") == 1
    reader = PageReader(page)
    assert {image["alt"] for image in reader.all("img")} == {bad}
    assert "".join(reader.texts).count(bad) >= 15


def test_success_curves_show_the_rates_in_the_page_s_colours():
    clips = make_result((0.75, 0.25, 0.5, 0.1)).clips
    plot = success_plot(clips[clips["protocol"] == "ssl_tie"], "ssl_tie")
    names, kinds, styles = zip(*plot.legend, strict=True)
    assert names[0] == "model" and kinds == ("model", "baseline", "baseline", "ceiling")
    for style, colour in zip(styles, ("curve-0", "curve-1", "curve-2", "muted"), strict=True):
        assert f"stroke: var(--{colour})" in style
    assert not re.search("#(?:0072b2|c04f00|008560|5a6775|dde2e8)", plot.svg)
    assert "var(--curve-0)" in plot.svg and "cIoU@0.5" in plot.svg and "<image" not in plot.svg
    (path,) = [d for d, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', plot.svg, re.DOTALL)
               if "curve-0" in style]  # fmt: skip
    points = np.array([list(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path)])
    rates = [np.mean([ciou >= at for ciou in (0.75, 0.25, 0.5, 0.1)]) for at in SUCCESS_THRESHOLDS]
    heights = (points[:, 1].max() - points[:, 1]) / np.ptp(points[:, 1])
    widths = (points[:, 0] - points[0, 0]) / np.ptp(points[:, 0])
    # What lies on one line is drawn as one stroke.
    np.testing.assert_allclose(heights, np.interp(widths, SUCCESS_THRESHOLDS, rates), atol=0.02)


# -------------------------------------------------------------------------------------- galleries


def clips_with(cious):
    return pd.DataFrame({"clip_id": list(cious), "ciou": list(cious.values())})


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_galleries_show_each_clip_once(count):
    for num_clips in (1, 2, 3, 4, 7, 30):
        cious = np.random.default_rng(0).permutation(num_clips) / 30
        clips = clips_with({f"clip_{index}": ciou for index, ciou in enumerate(cious)})
        galleries = choose_clips(clips, count)
        shown = [clip_id for rows in galleries.values() for clip_id in rows["clip_id"]]
        assert len(shown) == len(set(shown))
        assert all(0 < len(rows) <= count for rows in galleries.values())
        if num_clips >= 3 * count > 0:
            ordered = sorted(cious)
            best, median, worst = (rows["ciou"].tolist() for rows in galleries.values())
            assert list(galleries) == ["Best clips", "Clips around the median", "Worst clips"]
            assert (best, worst) == (ordered[::-1][:count], ordered[:count])
            below, above = (cious < min(median)).sum(), (cious > max(median)).sum()
            assert len(median) == count and abs(below - above) <= 1


def test_galleries_count_nan_as_the_worst_and_break_ties_by_id():
    clips = clips_with({"e": 0.4, "b": NAN, "d": 0.4, "a": 0.9, "c": 0.1, "f": 0.4})
    expected = {"Best clips": ["a", "d"], "Clips around the median": ["e", "f"], "Worst clips": ["b", "c"]}
    for given in (clips, clips[::-1]):
        chosen = choose_clips(given, 2)
        assert {title: rows["clip_id"].tolist() for title, rows in chosen.items()} == expected


@pytest.mark.parametrize("constant", [-0.5, 1.3, 2.0, NAN])
def test_clips_are_drawn_at_the_larger_size_of_frame_and_map(testing_program, constant):
    heat = torch.full((64, 64), constant)
    for side in (32, 64, 448):
        frame = torch.full((3, side, side), 90, dtype=torch.uint8)
        frame[0, side // 2 :] = 200
        picture, overlay = testing_program.draw_clip(frame, heat, None, "cIoU nan")
        large, middle = max(side, 64), max(side, 64) // 2
        assert picture.shape == overlay.shape == (large, large, 3) and overlay.dtype == np.uint8
        assert (picture[: middle - 4] == 90).all() and (picture[middle + 4 :, :, 0] == 200).all()
        below_caption = (overlay != picture)[middle:].any(axis=2)
        assert below_caption.mean() > 0.9 if constant > 1 else not below_caption.any()


def test_boxes_beyond_the_frame_inverted_ones_and_no_boxes_are_drawn(testing_program):
    frame, heat = torch.full((3, 64, 64), 90, dtype=torch.uint8), torch.zeros(64, 64)
    for boxes in ([[-3, 0.5, 5, 4.0], [0.2, 0.2, 0.4, 0.4]], None, np.zeros((0, 4)), [[0.9, 0.9, 0.1, 0.1]]):
        given = None if boxes is None else np.asarray(boxes, float)
        picture, overlay = testing_program.draw_clip(frame, heat, given, "cIoU 0.50")
        assert (overlay != picture)[40:].any() == (boxes is not None and len(boxes) == 2)


if __name__ == "__main__":
    for name, report in frozen_reports().items():
        write_files(GOLDENS / "report" / name, report)
        (GOLDENS / "report" / name / "report.html").unlink()
