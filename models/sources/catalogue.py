"""The table of models: what a model argument may be, and its options. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphsurgery.models.sources.listing import Listing


@dataclass(frozen=True)
class ModelEntry:
    """A way to name a model.

    Attributes:
        form: how it is spelled.
        what: what it is.
        options: what may stand behind the `?`, or which flags it needs.
    """

    form: str
    what: str
    options: str


ENDINGS: Mapping[str, str] = {
    ".pt": "a checkpoint, or weights saved by torch.save",
    **dict.fromkeys((".pth", ".ckpt", ".bin", ".pkl", ".tar", ".pt2"), "weights saved by torch.save"),
    ".safetensors": "tensors",
}
"""By which endings a name is that of a file, and what is in it."""

SPECS: Mapping[str, ModelEntry] = {
    "paper": ModelEntry("paper/NAME", "small networks of the papers, with random weights", "see below"),
    "torchvision": ModelEntry(
        "torchvision/NAME",
        "torchvision's; with random weights unless `weights` is given",
        "`weights=DEFAULT`, `num_classes=5`",
    ),
    "timm": ModelEntry(
        "timm/NAME",
        "timm's (extra `timm`); with random weights unless `pretrained` is given",
        "`pretrained=true`, `num_classes=5`, `in_chans=1`",
    ),
    "file": ModelEntry(
        "file.py:function",
        "what your function returns, an nn.Module; the file says by INPUT_SHAPE = (3, 32, 32) what it takes",
        "what the function takes",
    ),
    "hf": ModelEntry(
        "hf:FOLDER, hf:CLASS",
        "what save_pretrained wrote, or a class with random weights (extra `hf`)",
        "of a class, fields of its configuration: `num_hidden_layers=2`",
    ),
    "smp": ModelEntry(
        "smp:NAME", "segmentation networks (extra `smp`)", "`encoder_name=resnet18`, `encoder_weights=imagenet`"
    ),
    "ultralytics": ModelEntry("ultralytics:FILE.yaml", "ultralytics' (extra `ultralytics`)", "`nc=5`, `ch=1`"),
}
"""Model specs, by their source."""

FILES: Mapping[str, ModelEntry] = {
    ".pt": ModelEntry("model.pt", "what graphsurgery saved: it needs nothing else", ""),
    "state_dict": ModelEntry(
        "weights.pt, .pth, .ckpt, .bin",
        "a state_dict, also inside other dictionaries",
        "`--arch SPEC`, `--key NAME` of several",
    ),
    ".safetensors": ModelEntry("weights.safetensors", "tensors", "`--arch SPEC`"),
    "pickled": ModelEntry("module.pt", "a pickled module", "`--trust-pickle`, `--input 3x224x224`"),
    ".onnx": ModelEntry("model.onnx", "an ONNX file; edits can be written back into it", "`-o small.onnx`"),
}
"""Files that hold networks."""


def spec_listing() -> Listing:
    """Model specs, and files."""
    rows = [(_typed(entry.form), entry.what, entry.options) for entry in (*SPECS.values(), *FILES.values())]
    return Listing(("model", "what it is", "options"), rows)


def _typed(form: str) -> str:
    return ", ".join(f"`{part}`" for part in form.split(", "))
