"""The page to plan a cut, in a browser: slide, read the numbers, and compare them with the command that it gives."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from known_times import profile

import graphsurgery as gs
from graphsurgery.cli import run
from graphsurgery.onnx.runtime.latency import Latency, Timing
from graphsurgery.recipes.compression import cost_table
from graphsurgery.recipes.compression.to_latency import network_files, timed
from graphsurgery.surgery.channels.planned_cost import PlannedCost

TOTALS = "Object.fromEntries([...document.querySelectorAll('[data-total]')].map(row => [row.dataset.total, "
TOTALS += "[...row.querySelectorAll('td')].slice(0, 2).map(cell => Number(cell.dataset.value))]))"
COMMAND = "document.getElementById('command').textContent"
WIDTHS = "[...document.querySelectorAll('.width + output')].map(found => found.textContent)"
ATTENTION = """
import torch
from torch import nn

INPUT_SHAPE = (5, 8)

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 36), nn.Linear(12, 8), nn.Linear(8, 3)
        self.shift = nn.Parameter(torch.zeros(12))

    def forward(self, x):
        q, k, v = (part.unflatten(2, (3, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        mixed = (q @ k.transpose(2, 3)).softmax(3) @ v
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2) + self.shift))

def attention():
    return Attention()
"""


@pytest.fixture
def page(here, files, browser, capsys):
    """Write and open the page of a model; what the command says of it."""
    (here / "a.onnx").symlink_to(files / "a.onnx")
    (here / "attention.py").write_text(ATTENTION)

    def opened(model, *options, hash=""):
        assert run(["view", model, "--html", "plan.html", "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        browser.open(here / "plan.html", hash)
        return found

    return opened


def cut_by(command, capsys):
    """What `compress` says of the cut that a command line makes."""
    capsys.readouterr()
    program, *tokens = shlex.split(command)
    assert program == "graphsurgery"
    assert run([*tokens, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_as_compress_says(browser, capsys):
    """Widths and counts on the page are those of the command that it gives; that command."""
    command, totals = browser(COMMAND), browser(TOTALS)
    found = cut_by(command, capsys)
    for side, when in enumerate(("before", "after")):
        costs = found[when]
        assert [totals["parameters"][side], totals["MACs"][side]] == [costs["parameters"], costs["macs"]]
        assert totals["size"][side] == costs["bytes"]
    assert found["after"]["macs"] < found["before"]["macs"]
    return command, found["sizes"]


GROUPS = "nets.py:groups --input 3x8x8"


@pytest.mark.parametrize("model", ["a.pt", "a.onnx", GROUPS, "attention.py:attention"])
def test_one_slider_for_all(page, browser, capsys, model):
    page(*model.split())
    assert not browser(COMMAND).startswith("graphsurgery")
    browser("document.getElementById('keep').focus()")
    browser.press("ArrowLeft", 45)
    command, _ = assert_as_compress_says(browser, capsys)
    assert command.startswith(f"graphsurgery compress {model} --keep 0.55 -o small.")
    assert browser("location.hash") == "#keep=0.55"
    assert browser.failures() == []


@pytest.mark.parametrize("model", ["a.pt", GROUPS, "attention.py:attention"])
def test_a_slider_for_each_space(page, browser, capsys, model):
    page(*model.split())
    rows = browser("document.querySelectorAll('.width').length")
    for row in range(rows):  # groups, heads, and what is inside them
        browser(f"document.querySelectorAll('.width')[{row}].focus()")
        browser.press("ArrowLeft")
    command, sizes = assert_as_compress_says(browser, capsys)
    assert "--keep " not in command
    assert [f"{after} of {before}" for before, after in sizes.values()] == browser(WIDTHS)


def test_a_share_and_what_differs_from_it(page, browser, capsys):
    page("a.pt")
    browser.click("#keep", 0.5)
    browser("document.querySelectorAll('.width')[1].focus()")
    browser.press("End")
    command, sizes = assert_as_compress_says(browser, capsys)
    name = next(iter(sizes))
    assert f"--keep-space {name}={sizes[name][0]}" in command
    browser.click("#reset")
    assert browser(TOTALS)["MACs"][0] == browser(TOTALS)["MACs"][1]


def test_steps_of_channels(page, browser, capsys):
    page("other.pt")
    browser("document.getElementById('step').value = '4'")
    browser("document.getElementById('step').dispatchEvent(new Event('change'))")
    browser("document.getElementById('keep').focus()")
    browser.press("ArrowLeft", 30)
    command, _ = assert_as_compress_says(browser, capsys)
    assert "--round-to 4" in command
    again = browser("location.hash")
    browser.open(browser.shown, again)  # the address has the plan
    assert browser(COMMAND) == command


def test_the_predicted_time_is_that_of_the_table(page, browser, capsys, monkeypatch):
    monkeypatch.setattr(cost_table, "profile", profile)
    monkeypatch.setattr(
        cost_table, "measure_latency", lambda paths, **_: dict.fromkeys(paths, Latency(0.3, 0, 50, 1, 1))
    )
    found = page("a.pt", "--latency", "--runs", "7")
    assert set(found["table"]["spaces"]) == {space.name for space in gs.load("a.pt").spaces}
    browser.click("#keep", 0.6)
    browser("document.querySelectorAll('.width')[0].focus()")
    browser.press("ArrowLeft", 2)
    sizes = {name: after for name, (_, after) in cut_by(browser(COMMAND), capsys)["sizes"].items()}
    graph = gs.load("a.pt")
    with network_files(graph) as exported:
        table = timed(graph, exported, Timing(runs=7)).table
    before, after = browser(TOTALS)["latency"]
    assert before == pytest.approx(table.microseconds({}) / 1000, rel=1e-9)
    assert after == pytest.approx(table.microseconds(sizes) / 1000, rel=1e-9)
    assert after < before


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page, browser, width):
    page("a.pt")
    browser.open(browser.shown, "#keep=0.3", width=width, height=800)
    assert browser("document.scrollingElement.scrollWidth") <= width
    assert browser(
        "[...document.querySelectorAll('aside *')].every(e => e.getBoundingClientRect().right <= innerWidth)"
    )


def test_the_picture_fits_and_follows_the_plan(page, browser):
    page("a.pt")
    browser.click("#fit")
    assert browser("document.querySelector('.picture').getBoundingClientRect().bottom <= innerHeight")
    costs = "[...document.querySelectorAll('.cost')].map(text => text.textContent)"
    before = browser(costs)
    assert before
    browser.click("#keep", 0.5)
    assert all(was != now for was, now in zip(before, browser(costs), strict=True))
    browser.click(".picture .box")
    assert not browser("document.getElementById('card').hidden")


def test_what_cannot_be_planned_has_no_sliders(page, browser):
    found = page("nets.py:bare")
    assert found["boxes"] == 4
    assert browser("document.getElementById('plan')") is None


@pytest.mark.parametrize("model", ["a.pt", "a.onnx"])
def test_where_costs_are_not_known_the_page_says_why(page, browser, here, capsys, monkeypatch, model):
    def unknown(_):
        raise gs.UnsupportedError("mystery: how its multiply-accumulates change is not known")

    monkeypatch.setattr(PlannedCost, "by_node", unknown)
    page(model)
    assert browser("document.getElementById('plan')") is None
    assert "No sliders to plan a cut: mystery" in browser("document.querySelector('aside').textContent")
    assert run(["view", model, "--html", "plan.html", "--overwrite"]) == 0
    assert "note       no sliders to plan a cut: mystery" in capsys.readouterr().out
    (here / "plan.html").unlink()
    assert run(["view", model, "--html", "plan.html", "--latency"]) == 3
    assert not (here / "plan.html").exists()


@pytest.mark.parametrize("model", ["a.pt", "a.onnx"])
def test_the_page_needs_nothing_else(page, browser, here, model):
    page(model)
    text = (here / "plan.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=|url\((?!#)|https?://|@import", text)
    assert "default-src 'none'" in text
    assert browser("performance.getEntriesByType('resource').length") == 0
    assert browser.failures() == []


def test_repeats_can_be_unfolded(here, browser):
    (here / "deep.py").write_text(DEEP)
    assert run(["view", "deep.py:deep", "--html", "plan.html", "--quiet"]) == 0
    browser.open(here / "plan.html")
    boxes = (
        "[...document.querySelectorAll('.picture')].map(e => e.checkVisibility() && e.querySelectorAll('.box').length)"
    )
    folded, _ = browser(boxes)
    browser.click(".fold")
    assert "like the box above" in browser("document.getElementById('name').textContent")
    browser.click("#fold")
    assert browser("document.getElementById('card').hidden")
    assert browser(boxes) == [False, folded + 3]


DEEP = """
from torch import nn

INPUT_SHAPE = (6,)

def deep():
    return nn.Sequential(nn.Linear(6, 8), *[nn.Linear(8, 8) for _ in range(5)], nn.Linear(8, 2))
"""


def test_how_a_latency_is_measured_needs_one(fails):
    assert fails("view", "a.pt", "--html", "x.html", "--runs", "3") == (
        2,
        "view: --threads, --batch and --runs say how a latency is measured; give --latency",
    )
