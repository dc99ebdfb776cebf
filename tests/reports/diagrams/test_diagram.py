"""The pictures of networks and ONNX files: what is in them, and that the page needs nothing else."""

from __future__ import annotations

import json
import re

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import graphsurgery as gs
from graphsurgery.onnx.files import read_onnx
from graphsurgery.onnx.files.nodes import read_nodes
from graphsurgery.passes.compress import compress
from graphsurgery.reports.diagrams.diagram import Box, Diagram, Key
from graphsurgery.reports.diagrams.network_diagram import network_diagram
from graphsurgery.reports.diagrams.onnx_diagram import onnx_diagram
from graphsurgery.reports.diagrams.page import rendered, write_diagram
from graphsurgery.reports.diagrams.plan import Plan


class Net(nn.Module):
    """A residual sum, and a concat of two spaces."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.side = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.cat([x + self.body(x), self.side(x)], 1)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return gs.trace(Net().eval(), torch.zeros(2, 3, 6, 6))


def test_a_box_is_a_layer_with_what_follows_it(graph):
    diagram = network_diagram(graph, "net")
    assert list(diagram.boxes) == ["x", "stem", "body", "add", "side", "cat", "head", "output"]
    stem = diagram.boxes["stem"]
    assert stem.lines == ("Conv2d 3 → 8, 3×3", "norm, relu", "[batch, 8, 6, 6]")
    assert stem.details["parameters"] == f"{3 * 8 * 9 + 8 + 16:,}"
    assert ("stem", "add") in diagram.edges
    assert ("add", "cat") in diagram.edges
    assert len(diagram.edges) == 9


def test_a_parameter_by_itself_has_no_batch():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.shift = nn.Linear(4, 6), nn.Parameter(torch.zeros(3, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.shift

    box = network_diagram(gs.trace(Shifted().eval(), torch.zeros(2, 3, 4)), "net").boxes["shift"]
    assert (box.lines, box.parameters) == (("parameter", "[3, 6]"), 18)


def test_boxes_have_the_colors_of_their_spaces(graph):
    diagram = network_diagram(graph, "net")
    assert list(diagram.keys) == ["stem", "side"]
    bands = {name: box.bands for name, box in diagram.boxes.items()}
    assert bands["stem"] == bands["add"] == (("stem", 8.0),)
    assert bands["cat"] == (("stem", 8.0), ("side", 4.0))
    assert bands["head"] == ((None, 1.0),)
    assert bands["x"] == ()


def test_widths_before_and_after(graph):
    assert network_diagram(graph, "net").heads == ("space", "width")
    small = compress(compress(graph, {"stem": 6, "side": 4}), {"stem": 5, "side": 4})
    diagram = network_diagram(small, "net")
    assert diagram.heads == ("space", "before", "width")
    assert [key.cells for key in diagram.keys.values()] == [("stem", "8", "5"), ("side", "4", "4")]


def test_the_sliders_stand_for_the_keys_unless_these_say_more(graph):
    small = compress(graph, {"stem": 6})
    pages = [rendered(network_diagram(g, "net", Plan.of(g, ["x"], "y.pt"))) for g in (graph, small)]
    assert ['class="keys"' in page for page in pages] == [False, True]
    assert all(page.count('class="width"') == 2 for page in pages)
    assert 'class="keys"' in rendered(network_diagram(graph, "net"))


def test_an_onnx_file(tmp_path):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    weight = onnx.numpy_helper.from_array(torch.zeros(3, 2).numpy(), "fc.weight")
    nodes = [
        helper.make_node("MatMul", ["x", "fc.weight"], ["h"], "product"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Add", ["h", "r"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "m.onnx")
    file = read_onnx(tmp_path / "m.onnx")
    diagram = onnx_diagram(read_nodes(file), "m.onnx", file.bytes)
    assert [box.title for box in diagram.boxes.values()] == ["x", "MatMul", "Relu", "Add", "y"]
    assert diagram.boxes["node 0"].lines == ("fc", "[1, 2]")
    assert diagram.boxes["node 0"].details["fc.weight"] == "[3, 2]"
    assert len(diagram.edges) == 5
    assert [key.grey for key in diagram.keys.values()] == [False, True, True]


def test_the_page_needs_nothing_else(graph, tmp_path):
    diagram = network_diagram(graph, "net")
    write_diagram(diagram, tmp_path / "m.html")
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert page == rendered(diagram)
    assert not re.search(r"(src|href)=|url\((?!#)|https?://|@import", page)
    assert "default-src 'none'" in page
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', page, re.DOTALL)[1])
    assert [box["name"] for box in facts["pictures"][0]] == list(diagram.boxes)


def test_names_cannot_break_out_of_the_page():
    evil = "</script><script>alert(1)</script>\x00"
    boxes = {evil: Box(evil, (evil,), ((evil, 1.0),), {evil: evil})}
    page = rendered(Diagram(evil, (evil,), boxes, (), (evil,), {evil: Key((evil,))}, (evil,)))
    assert "<script>alert" not in page
    assert page.count("</script>") == 2
    assert "\x00" not in page


def test_long_texts_are_cut():
    long = "encoder.layers." + "x" * 80
    page = rendered(Diagram("t", (), {"a": Box(long, (", ".join("abcdef" * 12),))}, (), (), {}))
    assert "…" + "x" * 43 in page
    assert "encoder.layers.x" not in re.sub(r"<script.*", "", page, flags=re.DOTALL)
