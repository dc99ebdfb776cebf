"""What `docs/record.py` makes of a page: its commands are run, and their output takes the place of what stood there."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

PAGE = """# A page

```python title="greet.py"
import sys

print("hello", *sys.argv[1:])
sys.exit(len(sys.argv) - 1)
```

```console
$ python greet.py
what it printed a year ago

$ python greet.py \\
    you
error  of a year ago
exit code 1
```

Other `console` words stay: $ python greet.py
"""


@pytest.fixture
def pages(monkeypatch):
    """The module that records pages."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    from recording import pages

    return pages


@pytest.fixture
def materials(monkeypatch):
    """The module that draws and trains what users have."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    from recording import materials

    return materials


def test_commands_are_run_and_the_rest_stays(pages, tmp_path):
    told = []
    text = pages.recorded(PAGE, tmp_path, told.append)
    expected = PAGE.replace("what it printed a year ago", "hello")
    assert text == expected.replace("error  of a year ago", "hello you")
    assert told == ["python greet.py", "python greet.py \\\n    you"]
    assert pages.recorded(text, tmp_path, told.append) == text


@pytest.mark.parametrize(("old", "new"), [("exit code 1", "exit code 2"), ("greet.py\nwhat", "greet.py 1\nwhat")])
def test_a_command_that_ends_otherwise_than_the_page_says_is_refused(pages, tmp_path, old, new):
    with pytest.raises(subprocess.CalledProcessError, match="returned non-zero exit status 1"):
        pages.recorded(PAGE.replace(old, new), tmp_path, lambda _: None)


def test_a_command_that_should_fail_and_does_not_is_refused(pages, tmp_path):
    page = PAGE.replace("$ python greet.py\nwhat it printed a year ago", "$ python greet.py\nexit code 2")
    with pytest.raises(subprocess.CalledProcessError):
        pages.recorded(page, tmp_path, lambda _: None)


def test_commands_of_a_page_are_lines(pages):
    assert pages.commands(PAGE) == ["python greet.py", "python greet.py     you"]


def test_images_are_the_same_each_time(materials):
    """What the users have is drawn from seeds."""
    images = [materials.drawn(kind, random.Random(7)).tobytes() for kind in 2 * materials.CLASSES]
    assert images[: len(images) // 2] == images[len(images) // 2 :]
    assert len(set(images)) == len(materials.CLASSES)
    generator = random.Random(7)
    assert materials.drawn("disc", generator).tobytes() != materials.drawn("disc", generator).tobytes()
