"""A browser without a screen: Debian's chromium, driven over two pipes by its own protocol (`--remote-debugging-pipe`).

What a test does is what a person does: it opens a file, moves a slider by the keys or the mouse, and reads the page.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-sync --disable-extensions --disable-dev-shm-usage "
    "--disable-background-networking --disable-component-update --hide-scrollbars --remote-debugging-pipe"
)
_PATIENCE = 120
_KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowUp": 38, "ArrowDown": 40, "Home": 36, "End": 35, "Enter": 13}


class Browser:
    """One page of one browser.

    Args:
        folder: for its profile.

    Attributes:
        shown: the file that is shown.
    """

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        self._number, self._rest = 0, b""

        def wire() -> None:  # the browser reads from 3 and writes to 4; the ends of its pipes may have these numbers
            a, b = os.dup(theirs_in), os.dup(theirs_out)
            high = max(a, b, 4) + 1
            os.dup2(a, high)
            os.dup2(b, high + 1)
            os.dup2(high, 3)
            os.dup2(high + 1, 4)

        command = [CHROMIUM, *_OPTIONS.split(), f"--user-data-dir={folder}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=quiet, stdout=quiet, stderr=quiet, preexec_fn=wire, close_fds=False
        )
        os.close(theirs_in)
        os.close(theirs_out)
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._thrown: list[dict[str, Any]] = []
        self._call("Runtime.enable")

    _session: str | None = None

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)  # without its pipe it ends by itself
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)

    def open(self, page: Path, hash: str = "", *, width: int = 1280, height: int = 900) -> None:
        """Show a file in a window of this size."""
        self.shown = page
        self._thrown.clear()
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=page.resolve().as_uri() + hash)
        limit = time.monotonic() + _PATIENCE
        while self("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < limit, f"{page} is not shown"

    def __call__(self, expression: str) -> Any:
        """What an expression of the page's own language gives."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def failures(self) -> list[str]:
        """What scripts of the page have failed with since it was opened."""
        self("0")  # what was said until now comes before the answer
        return [event["params"]["exceptionDetails"]["text"] for event in self._thrown]

    def press(self, key: str, times: int = 1) -> None:
        """Press a key on what has the focus."""
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key])

    def click(self, selector: str, across: float = 0.5) -> None:
        """Click on an element, at a share of its width."""
        element = f"document.querySelector({json.dumps(selector)})"
        self(f"{element}.scrollIntoView({{block: 'center'}})")
        box = self(f"(r => [r.x, r.y, r.width, r.height])({element}.getBoundingClientRect())")
        where = {"x": box[0] + across * box[2], "y": box[1] + box[3] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, **where)

    def picture(self, path: Path) -> None:
        """Write what the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        limit = time.monotonic() + _PATIENCE
        while True:
            answer = self._answer(limit)
            if answer.get("method") == "Runtime.exceptionThrown":
                self._thrown.append(answer)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _answer(self, limit: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, limit - time.monotonic()))
            chunk = os.read(self._read, 1 << 16) if ready else b""
            assert chunk, "the browser does not answer"
            self._rest += chunk
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)
