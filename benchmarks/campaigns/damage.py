"""Many damaged files, each opened in a process that may die, kept on disk so that a killed campaign goes on.

Knows neither checkpoints nor `.onnx` files: a campaign gives the kinds of damage, and a function that makes one damaged
file from a kind and a seed and says what became of it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from document import DOCS, measured, table, write_section

from graphsurgery.errors import SurgeryError, out_of_memory, printable

SAME, OTHER, REFUSED = "same result", "another valid file", "refused in one line"
TRACEBACK, WRONG, DIED = "traceback", "wrong", "crashed or hung"
OUTCOMES = (SAME, OTHER, REFUSED, TRACEBACK, WRONG, DIED)
FAULTS = (TRACEBACK, WRONG, DIED)
PAGE = DOCS / "reliability.md"
_CHUNK = 20
_SECONDS = 60


@dataclass(frozen=True)
class Found:
    """What became of one damaged file: one of `OUTCOMES`, and what was said."""

    outcome: str
    words: str = ""


Examine = Callable[[str, int, Path], Found]


def outcome_of(opening: Callable[[], Found]) -> Found:
    """What an opening came to; whatever is no refusal in one line is a traceback."""
    try:
        return opening()
    except SurgeryError as cause:
        text = str(cause)
        return Found(REFUSED if text == printable(text) and text else WRONG, text)
    except Exception as cause:  # what a user would see as a traceback
        if out_of_memory(cause):  # which the command line says in one line
            return Found(REFUSED, str(cause))
        return Found(TRACEBACK, f"{type(cause).__name__}: {printable(str(cause))}")


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Bytes with a damage that disks and networks do: a bit, a block of zeros, an end that is missing, …"""
    data = bytearray(content)
    at, length = draw.randrange(len(data)), draw.choice((1, 16, 512, 4096))
    match draw.randrange(6):
        case 0:
            data[at] ^= 1 << draw.randrange(8)
        case 1:
            data[at : at + length] = bytes(len(data[at : at + length]))
        case 2:
            del data[at:]
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = draw.randbytes(length)
        case _:
            data[at : at + length] = draw.randbytes(len(data[at : at + length]))
    return bytes(data)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a nested value of dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items):
        yield value, key
        yield from places(part)


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**70), 0.5, float("1e308"), "", "x", "zeros", "\x1b[2J"),
    *([], [1], [1, 2, 3], [-1, -1], {}, {"tuple": [1, 2]}, {"node": "x"}, {"dtype": "int64"}, {"float": "nan"}),
    *({"slice": [None, None, 0]}, {"dict": [["a", 1]]}, {"device": "cuda"}, {"ellipsis": None}, {"size": [2, 2]}),
)


def mutate(value: Any, draw: random.Random) -> None:
    """Change one place of a nested value, in place: other content, nothing, twice, or what another place has."""
    found = list(places(value))
    holder, key = draw.choice(found)
    other, where = draw.choice(found)
    match draw.randrange(5):
        case 0 | 1:
            holder[key] = draw.choice(VALUES)
        case 2:
            del holder[key]
        case 3 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case _:
            holder[key], other[where] = other[where], holder[key]


def campaign(title: str, kinds: Sequence[str], examine: Examine, arguments: Sequence[str] | None = None) -> int:
    """Run all cases that are not in the cache, print the faults, write the table; how many faults there were."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--cases", type=int, default=30, help="of each kind")
    parser.add_argument("--kind", action="append", help="only this kind, and no page")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "graphsurgery" / "campaigns")
    parser.add_argument("--no-page", action="store_true")
    options = parser.parse_args(arguments)
    name = Path(sys.argv[0]).stem
    cache = options.cache / f"{name}.jsonl"
    cache.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    wanted = [(kind, seed) for kind in options.kind or kinds for seed in range(options.cases)]
    known = _known(cache)
    missing = [case for case in wanted if case not in known]
    while missing:
        _in_child(missing[:_CHUNK], examine, cache)
        known = _known(cache)
        missing = [case for case in missing if case not in known]
    counts: dict[str, Counter[str]] = {}
    for kind, seed in wanted:
        found = known[kind, seed]
        counts.setdefault(kind, Counter())[found["outcome"]] += 1
        if found["outcome"] in FAULTS:
            print(f"{kind} {seed}: {found['outcome']}: {found['words']}", flush=True)
    seconds = sum(known[case]["seconds"] for case in wanted)
    text = table(("kind of damage", "cases", *OUTCOMES), list(rows(counts)))
    print(text, f"\n{time.perf_counter() - began:.0f} s")
    if not options.kind and not options.no_page:
        command = f"python benchmarks/campaigns/{name}.py --cases {options.cases}"
        line = measured(command, seconds, "onnx", "onnxruntime")
        write_section(name, f"{line}\n\n{text}", PAGE)
    return sum(count[fault] for count in counts.values() for fault in FAULTS)


def rows(counts: Mapping[str, Counter[str]]) -> Iterator[tuple[str, ...]]:
    """The rows of the table, with a last one for all."""
    total: Counter[str] = Counter()
    for kind, count in counts.items():
        total += count
        yield (kind, str(count.total()), *(str(count[outcome]) for outcome in OUTCOMES))
    yield ("all", str(total.total()), *(str(total[outcome]) for outcome in OUTCOMES))


def _known(cache: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What has been found; a case that was begun and not ended killed its process."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in cache.read_text(encoding="utf-8").splitlines() if cache.exists() else ():
        try:
            record = json.loads(line)
            found[record["kind"], record["seed"]] = record
        except (ValueError, KeyError):
            continue  # a line that a kill cut short
    return found


def _in_child(cases: Sequence[tuple[str, int]], examine: Examine, cache: Path) -> None:
    """Examine cases in a forked process; the one at which it dies is noted as such."""
    child = os.fork()
    if not child:
        code = 1
        try:
            _work(cases, examine, cache)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        known = _known(cache)
        kind, seed = next(case for case in cases if case not in known)
        words = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
        _note(cache, kind, seed, Found(DIED, words), 0.0)


def _work(cases: Sequence[tuple[str, int]], examine: Examine, cache: Path) -> None:
    for kind, seed in cases:
        # A signal that Python does not catch ends the process whatever it does.
        signal.alarm(_SECONDS)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = examine(kind, seed, Path(folder))
        signal.alarm(0)
        _note(cache, kind, seed, found, time.perf_counter() - began)


def _note(cache: Path, kind: str, seed: int, found: Found, seconds: float) -> None:
    record = {"kind": kind, "seed": seed, "outcome": found.outcome, "words": found.words[:400], "seconds": seconds}
    with cache.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
