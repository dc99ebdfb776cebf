"""Every call of torch between two layers of a network, and what becomes of it: docs/calls.md.

    python benchmarks/campaigns/every_call.py            # goes on where it was killed
    python benchmarks/campaigns/every_call.py --name torch.cumsum

The names are found by introspection, their arguments are invented. A call has a rule (nothing is frozen), is frozen on
purpose, is refused, or is no part of a network; each with its reason. Where something can be cut, the contracts of
cutting, widening, merging and saving are measured in float64. An unknown name, one that freezes without a reason, and a
contract that is broken are faults: a newer torch fails here, and not at the user's.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
from document import DOCS, measured, table, write_section
from invented_calls import (
    CANNOT_STAND,
    FAULT,
    FROZEN,
    HOMES,
    OUTCOMES,
    REFUSED,
    RULE,
    Became,
    Spelled,
    became,
    every_call,
    reason_of,
)

PAGE = DOCS / "calls.md"


def known(cache: Path) -> dict[Spelled, Became]:
    """What has been found, by name."""
    found = {}
    for line in cache.read_text(encoding="utf-8").splitlines() if cache.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut short
        found[Spelled(*record["name"])] = Became(**record["became"])
    return found


def examine(cache: Path) -> dict[Spelled, Became]:
    """All calls, each noted as soon as it is done."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    found = known(cache)
    for spelled in every_call():
        if spelled in found:
            continue
        found[spelled] = became(spelled)
        with cache.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": [spelled.home, spelled.name], "became": asdict(found[spelled])}) + "\n")
        if found[spelled].outcome == FAULT:
            print(f"{spelled}: {found[spelled].words}", flush=True)
    return {spelled: found[spelled] for spelled in every_call()}


def counts(found: Mapping[Spelled, Became]) -> str:
    """A row for each place of torch: how many names, and what becomes of them."""
    rows = []
    for home in HOMES:
        here = collections.Counter(entry.outcome for spelled, entry in found.items() if spelled.home == home)
        rows.append([f"`{home}`", str(sum(here.values())), *(str(here[outcome]) for outcome in OUTCOMES)])
    every = collections.Counter(entry.outcome for entry in found.values())
    rows.append(["all", str(len(found)), *(str(every[outcome]) for outcome in OUTCOMES)])
    return table(["where", "names", *OUTCOMES], rows)


def reasons(found: Mapping[Spelled, Became], outcome: str) -> str:
    """The names that have an outcome, by its reason; a name that stands in several places is there once."""
    names: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for spelled, entry in found.items():
        if entry.outcome == outcome:
            names[reason_of(spelled, entry.words)][f"`{spelled.name}`"] = None
    lines = [f"- **{reason.replace('|', '/')}**: {' '.join(names[reason])}" for reason in sorted(names)]
    return "\n".join(lines)


def page(found: Mapping[Spelled, Became]) -> str:
    """The counts, and the names by reason."""
    ruled = ["# ", *(f"`{s.name}`" for s, entry in found.items() if entry.outcome == RULE)]
    parts = [
        counts(found),
        f"### Frozen on purpose\n\n{reasons(found, FROZEN)}",
        f"### Refused\n\n{reasons(found, REFUSED)}",
        f"### No part of a network\n\n{reasons(found, CANNOT_STAND)}",
        f"### With a rule\n\n{' '.join(dict.fromkeys(ruled[1:]))}",
    ]
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", help="only this one, such as torch.cumsum, and no page")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "graphsurgery" / "campaigns")
    parser.add_argument("--no-page", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.name is not None:
        home, _, name = options.name.rpartition(".")
        print(became(Spelled(home, name)))
        return 0
    began = time.process_time()
    found = examine(options.cache / f"every_call_{torch.__version__}.jsonl")
    print(counts(found))
    faults = [spelled for spelled, entry in found.items() if entry.outcome == FAULT]
    if not options.no_page and not faults:
        command = "python benchmarks/campaigns/every_call.py"
        write_section("every_call", f"{measured(command, time.process_time() - began)}\n\n{page(found)}", PAGE)
    return len(faults)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
