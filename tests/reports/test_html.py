import dataclasses
import html.parser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from graphsurgery.errors import SurgeryError
from graphsurgery.reports.circumstances import circumstances
from graphsurgery.reports.html import rendered, write_report
from graphsurgery.reports.plots import late, scale_of
from graphsurgery.training.loop.run import EpochRecord

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order; collects elements, ids, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def headings(self):
        return [title for title in SECTIONS.values() if title in self.texts]


SECTIONS = {
    "rows": "Result",
    "checks": "Checks",
    "curves": "Training",
    "gates": "How the gates closed",
    "origins": "Where the channels came from",
    "files": "Files",
    "config": "Configuration",
}


@pytest.fixture(scope="module")
def text(outcome):
    return rendered(outcome)


@pytest.fixture(scope="module")
def hostile_text(hostile):
    return rendered(hostile)


@pytest.mark.parametrize("name", ["text", "hostile_text"])
def test_the_page_needs_nothing_else(name, request):
    page = Page(request.getfixturevalue(name))
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    ids = [value for key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    assert not [key for key, _ in page.attributes if key in ("src", "data", "onload", "onclick", "background")]
    references = [value[1:] for key, value in page.attributes if key in ("href", "xlink:href") and value[0] == "#"]
    references += re.findall(r"url\(#([^)]+)\)", request.getfixturevalue(name))
    assert references
    assert set(references) <= set(ids)
    assert not [v for k, v in page.attributes if v and k != "content" and re.search(r"https?:|//", v)]
    links = [value for key, value in page.attributes if key == "href" and value[0] != "#"]
    assert links
    assert all(re.fullmatch(r"\./[\w%./~-]+", value) for value in links)


def test_what_it_says(text):
    page = Page(text)
    assert page.headings == list(SECTIONS.values())
    words = [word for word in page.texts if word.strip()]
    assert (
        words.index("Merge of two networks", 1)
        < words.index("The merged network is better than both parents.")
        < words.index("Result")
    )
    assert {"98.33 %", "0.27 M", "40.55 M", "1.84", "two networks run", "1 of 2 checks hold", "2 min 41 s"} <= set(
        words
    )
    assert {"PASS", "FAIL", "2.3e-4", "≤ 1e-4"} <= set(words)
    assert {"training.epochs", "[16, 32]", "merged.pt", "layer1.0.conv1"} <= set(words)
    assert "parent 1: 15 channels, 46.9 %" in words
    assert words[words.index("best") - 1] == "fine-tuned"
    assert "layer1.0.conv1: 20.0 % open" in words


def test_every_color_follows_the_page(text):
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert "var(--hue-1)" in drawings
    assert not re.search(r"#[0-9a-f]{6}\b", drawings)


def test_hostile_names_are_text(hostile_text):
    assert "<script" not in hostile_text
    page = Page(hostile_text)
    name = "<script src=http://a.b/c></script>\"'&$x^2$ [red]|*\ufffd[31m\ufffd"
    assert page.texts.count(name) >= 7
    assert any(text.startswith("<script src") and "…" in text for text in page.texts)


@pytest.mark.parametrize("part", list(SECTIONS))
def test_a_missing_part_leaves_its_section_out(outcome, part):
    # Without its figures the page takes no time; the one that is tested here is left out of them all.
    fields = {name: type(getattr(outcome, name))() for name in ("curves", "gates", "origins", part)}
    page = Page(rendered(dataclasses.replace(outcome, **fields)))
    assert page.headings == [title for name, title in SECTIONS.items() if name not in fields]


def test_curves_without_validation_and_with_many_stages(outcome):
    curves = tuple(EpochRecord(f"stage {i}", 1, {"total": float(i)}) for i in range(6))
    page = Page(rendered(dataclasses.replace(outcome, curves=curves, gates=(), origins={})))
    assert page.tags.count("svg") == 6
    assert "validation accuracy" not in page.texts[page.texts.index("Training") :]
    assert {f"stage {i}" for i in range(6)} <= set(page.texts)


def test_numbers_that_are_not(outcome):
    curves = tuple(
        EpochRecord("gates", i + 1, {"total": x}, {"accuracy": x}) for i, x in enumerate([0.5, float("nan")])
    )
    Page(rendered(dataclasses.replace(outcome, curves=curves, gates=(), origins={"conv1": (0, 0)})))


def test_equal_outcomes_give_equal_bytes(outcome, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 7, "svg.fonttype": "path", "font.size": 30}):
        write_report(outcome, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == rendered(outcome, folder=tmp_path).encode()


def test_an_old_report_stays_whole(outcome, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(self, *_args, **_options):
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    bare = dataclasses.replace(outcome, curves=(), gates=(), origins={})
    with pytest.raises(SurgeryError, match=r"report.html: cannot be written .No space left on device"):
        write_report(bare, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, graphsurgery.reports.html, graphsurgery.reports.tables; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", f"import gc; gc.disable(); {code}"], check=True)


MADE = {"command": "graphsurgery merge a.pt <b>.pt", "data": "digits", "date": "2026-11-29 07:00 UTC"}


def test_it_says_how_it_was_made(outcome):
    bare = dataclasses.replace(outcome, curves=(), gates=(), origins={})
    text = "".join(Page(rendered(bare, MADE)).texts)
    assert text.index("Files") < text.index("How it was made") < text.index("graphsurgery merge a.pt <b>.pt")
    assert "How it was made" not in Page(rendered(bare)).texts


def test_files_are_links_as_seen_from_the_report(outcome, tmp_path):
    files = {"network": str(tmp_path / "out" / "a b.pt"), "onnx": str(tmp_path / "page" / "javascript:x.onnx")}
    bare = dataclasses.replace(outcome, curves=(), gates=(), origins={}, files=files)
    page = Page(rendered(bare, {}, tmp_path / "page"))
    links = [value for key, value in page.attributes if key == "href"]
    assert links == ["./../out/a%20b.pt", "./javascript%3Ax.onnx"]


def test_circumstances():
    found = circumstances(["merge", "a b.pt"], "digits")
    assert found["command"] == "graphsurgery merge 'a b.pt'"
    assert found["data"] == "digits"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])
    assert re.search(r"graphsurgery \S+, torch \S+, .*Python 3\.\d+", found["versions"])
    assert "cores" in found["hardware"]
    assert list(circumstances()) == ["date", "versions", "hardware"]


def test_small_differences_are_seen():
    """Accuracies of 97 and 98 percent are far apart on the axis, though all stages begin at 10."""
    stages = [[EpochRecord(str(n), i + 1, {}, {"accuracy": x}) for i, x in enumerate((0.1, 0.6, a, b))] for n, a, b in
              ((1, 0.97, 0.975), (2, 0.975, 0.985))]  # fmt: skip
    scale = scale_of(late(stages, "accuracy"), logarithmic=False)
    assert (scale.low, scale.high) == (0.97, 0.985)
    assert scale_of([2.3, 0.9], logarithmic=True).logarithmic
    assert not scale_of([0.0, 1.0], logarithmic=True).logarithmic


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_window(outcome, browser, tmp_path, width):
    write_report(outcome, tmp_path / "r.html", MADE)
    browser.open(tmp_path / "r.html", width=width)
    assert browser("document.scrollingElement.scrollWidth") <= width
    assert browser("[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
    label = "getComputedStyle(document.querySelector('.result td'), '::before').content"
    assert browser(label) == ('"test accuracy"' if width == 390 else "none")
