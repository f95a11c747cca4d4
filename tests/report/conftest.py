"""A browser without a network, for the pages that ``rlai inspect`` writes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file in a page without a network; errors of the page, and any other request, fail the test."""
    contexts, wrong = [], []

    def open_page(path: Path, width: int = 1280, height: int = 900) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
        context.set_default_timeout(120_000)  # milliseconds: other tests may have all the cores
        contexts.append(context)
        page = context.new_page()

        def route(route: Any) -> None:
            if route.request.url == path.as_uri():
                route.continue_()
            else:
                wrong.append(f"request: {route.request.url}")
                route.abort()

        page.route("**/*", route)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on(
            "console",
            lambda said: wrong.append(f"{said.type}: {said.text}") if said.type in ("error", "warning") else None,
        )
        page.goto(path.as_uri())
        page.wait_for_selector("#returns .main-svg")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
