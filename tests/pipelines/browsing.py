"""Opens a page in the Chromium of the system, offline, and notes what it complains about or asks for."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A microphone that hums, and that nobody has to allow.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
# A page tells of what its policy forbids by an event; the listener is there before the page is.
LISTEN = "document.addEventListener('securitypolicyviolation', e => console.error('policy: ' + e.violatedDirective))"
LOADED = "() => [...document.querySelectorAll('audio, video')].every(a => a.readyState >= 1)"


@dataclass
class Visit:
    """A page as a browser opened it, and whatever it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium of the system; tests that need it skip where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


def visit(browser: Any, path: Path, width: int, scheme: str) -> Visit:
    """Opens a page and waits until its sounds and videos are there."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    context.add_init_script(LISTEN)
    result = Visit(page=context.new_page())
    result.page.on("console", lambda message: result.complaints.append(message.text))
    result.page.on("pageerror", lambda error: result.complaints.append(str(error)))
    result.page.on("request", lambda request: result.requests.append(request.url))
    result.page.on("requestfailed", lambda request: result.complaints.append(f"failed: {request.url[:80]}"))
    result.page.goto(path.as_uri())
    result.page.wait_for_function(LOADED, timeout=20_000)
    return result
