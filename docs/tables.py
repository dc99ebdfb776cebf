"""Write the README's tables of models, data, options and exit codes: `python docs/tables.py`.

They are what `graphsurgery models`, `graphsurgery data` and `--help` show.
"""

from __future__ import annotations

import re
from pathlib import Path

from graphsurgery.cli.process.failures import EXIT_CODES
from graphsurgery.models.search import paper_listing
from graphsurgery.models.sources.catalogue import spec_listing
from graphsurgery.models.sources.listing import Listing
from graphsurgery.training.data.catalogue import data_listing, option_listing

README = Path(__file__).parents[1] / "README.md"


def tables() -> dict[str, str]:
    """The tables, by the names of their sections."""
    codes = Listing(("exit code", "what it means"), [(str(code), meaning) for code, meaning in EXIT_CODES.items()])
    listings = {"models": spec_listing(), "paper": paper_listing(), "data": data_listing()}
    listings |= {"options": option_listing(), "exit codes": codes}
    return {name: listing.markdown() for name, listing in listings.items()}


def with_tables(page: str) -> str:
    """The page with each table between its markers.

    Raises:
        ValueError: the page has not both markers of a table.
    """
    for name, table in tables().items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"README.md: wants {begin} and {end}, once each; add them where the table should stand")
        found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        page = found.sub(lambda _, text=f"{begin}\n\n{table}\n\n{end}": text, page)
    return page


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
