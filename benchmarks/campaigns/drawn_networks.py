"""Random networks of all kinds of steps, and all contracts of all passes on each: a table of docs/reliability.md.

    python benchmarks/campaigns/drawn_networks.py --networks 2000    # goes on where it was killed
    python benchmarks/campaigns/drawn_networks.py --seed 17          # one network, all that is found

A contract holds, is refused in one line, is violated (other numbers), or crashes (an error that is no refusal). What is
found is kept on disk, a line for each network. `--minutes` ends a run early; the page is written of what is known.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
from all_contracts import CRASHED, EVERY, FAULTS, HOLDS, IMPOSSIBLE, OUTCOMES, REFUSED, VIOLATED, Found, examine
from document import DOCS, measured, table, write_section
from unusual_steps import KINDS

PAGE = DOCS / "reliability.md"
EVERY_SO_MANY = 25
"""One network in so many goes to ONNX Runtime too."""
SHOWN = 20


def known(cache: Path) -> dict[int, dict[str, Found]]:
    """What has been found, by seed."""
    found: dict[int, dict[str, Found]] = {}
    for line in cache.read_text(encoding="utf-8").splitlines() if cache.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut short
        found[record["seed"]] = {name: Found(**entry) for name, entry in record["found"].items()}
    return found


def draw(seeds: Iterable[int], cache: Path, until: float) -> None:
    """Examine networks until the time is over, each noted as soon as it is done."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        if time.perf_counter() > until:
            return
        found = examine(seed, steps_of(seed), onnx=seed % EVERY_SO_MANY == 0)
        record = {"seed": seed, "found": {name: asdict(entry) for name, entry in found.items()}}
        with cache.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name, entry in found.items():
            if entry.outcome in FAULTS:
                print(f"{seed}: {name}: {entry.outcome}: {entry.words[:300]}", flush=True)


def steps_of(seed: int) -> int:
    """How many steps a network has."""
    return 1 + seed % 5


def rows(found: Mapping[int, Mapping[str, Found]]) -> list[list[str]]:
    """A row for each contract: counts, and how long a refusal takes in proportion to what is not refused."""
    lines = []
    for name in EVERY:
        entries = [contracts[name] for contracts in found.values() if name in contracts]
        count = collections.Counter(entry.outcome for entry in entries)
        taken = {o: [e.seconds for e in entries if e.outcome == o] for o in (HOLDS, REFUSED)}
        times = [f"{1000 * sum(t) / len(t):.0f}" if t else "" for t in taken.values()]
        lines.append([name, str(len(entries)), *(str(count[outcome]) for outcome in OUTCOMES), *times])
    return lines


def failing(found: Mapping[int, Mapping[str, Found]]) -> list[list[str]]:
    """A row for each impossible request: how long its refusal takes, in proportion to the work."""
    lines = []
    for name, (work, _) in IMPOSSIBLE.items():
        pairs = [(c[name], c[work]) for c in found.values() if name in c and c[work].outcome == HOLDS]
        taken = [sum(entry.seconds for entry in side) for side in zip(*pairs, strict=True)]
        wrong = sum(entry.outcome != HOLDS for entry, _ in pairs)
        shown = [f"{1000 * seconds / len(pairs):.1f}" for seconds in taken] if pairs else ["", ""]
        lines.append([name, str(len(pairs)), str(wrong), shown[1], shown[0]])
    return lines


def reasons(found: Mapping[int, Mapping[str, Found]]) -> list[list[str]]:
    """Why requests are refused, the most frequent reasons first: how many networks, by how many contracts of each."""
    networks: dict[str, set[int]] = collections.defaultdict(set)
    names: dict[str, set[str]] = collections.defaultdict(set)
    for seed, contracts in found.items():
        for name, entry in contracts.items():
            if entry.outcome == REFUSED and name in EVERY:
                reason = reason_of(entry.words)
                networks[reason].add(seed)
                names[reason].add(name)
    most = sorted(networks, key=lambda reason: -len(networks[reason]))
    shown = [
        [reason.replace("|", "\\|"), _listed(names[reason]), str(len(networks[reason]))] for reason in most[:SHOWN]
    ]
    rest = set().union(*(networks[reason] for reason in most[SHOWN:]))
    return [*shown, [f"{max(0, len(most) - SHOWN)} others", "", str(len(rest))]]


def reason_of(words: str) -> str:
    """A refusal without the command that says it: one reason keeps several commands from their work."""
    said = re.sub(r"^[^ ]+: ", "", words)
    for nothing in (
        "no channel can be removed",
        "no space would grow",
        "no space can be gated",
        "no space can be slimmed",
    ):
        said = said.removeprefix(f"{nothing}; ")
    return re.sub(r"^frozen by [^:;]+: ", "", said)


def _listed(names: Iterable[str]) -> str:
    """Contracts, those of one command as one."""
    return ", ".join(dict.fromkeys(name.partition(",")[0] for name in EVERY if name in set(names)))


def page(found: Mapping[int, Mapping[str, Found]]) -> str:
    """The two tables, and the share of the networks of which nothing is refused."""
    whole = sum(all(e.outcome == HOLDS for e in contracts.values()) for contracts in found.values())
    but = sum(
        all(e.outcome == HOLDS for name, e in contracts.items() if name != "concatenate")
        for contracts in found.values()
    )
    head = ["contract", "networks", *OUTCOMES, "ms if it holds", "ms if refused"]
    shares = (
        f"{len(KINDS)} kinds of steps, one to five in a network. Nothing at all is refused on"
        f" {whole / len(found):.0%} of the {len(found):,} networks, and nothing but"
        f" `concatenate` on {but / len(found):.0%}. The minutes are those of the requests, on the processor."
    )
    why = table(["why it is refused", "what is refused", "networks"], reasons(found))
    late = table(
        ["impossible request", "networks", "not refused", "ms of the work", "ms of the refusal"], failing(found)
    )
    return f"{shares}\n\n{table(head, rows(found))}\n\n{why}\n\n{late}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="only this network, and no page")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "graphsurgery" / "campaigns")
    parser.add_argument("--no-page", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.seed is not None:
        for name, entry in examine(options.seed, steps_of(options.seed), onnx=True).items():
            print(f"{name}: {entry.outcome} {entry.words} ({entry.seconds:.2f} s)")
        return 0
    began, cache = time.perf_counter(), options.cache / "random_networks.jsonl"
    wanted = range(options.first, options.first + options.networks)
    before = known(cache)
    draw((seed for seed in wanted if seed not in before), cache, began + 60 * options.minutes)
    found = {seed: contracts for seed, contracts in known(cache).items() if seed in wanted}
    text = page(found)
    print(text)
    if not options.no_page:
        command = f"python benchmarks/campaigns/drawn_networks.py --networks {options.networks} --first {options.first}"
        seconds = sum(entry.seconds for contracts in found.values() for entry in contracts.values())
        write_section("random_networks", f"{measured(command, seconds, 'onnxruntime')}\n\n{text}", PAGE)
    return sum(e.outcome in (VIOLATED, CRASHED) for contracts in found.values() for e in contracts.values())


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
