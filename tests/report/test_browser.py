"""The pages in headless Chromium, at the width of a phone and of a desk, in both schemes."""

import itertools
from contextlib import contextmanager
from importlib.resources import files

import pytest

from adabet.methods import rank
from adabet.report import write_report
from adabet.report.task import Task, keep_task
from adabet.training import fit
from tests.report.grids import write_results
from tests.training.nets import make_loaders, make_net

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

LONG = "a-class-or-layer-whose-name-goes-on-and-on-without-any-place-to-break-it-" * 3

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
"""The accessibility checker."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    model, loaders = make_net(), make_loaders()
    ranking = rank(model, [batch[0] for batch in loaders[0]], method="adabet", samples=16)
    keep_task(folder / "run", Task("demo", {}, LONG, ("cat", LONG), {"train": 44}), ranking)
    fit(model, *loaders, ranking.select(layer_ratio=0.5), lr=0.05, epochs=2, run_dir=folder / "run")
    return {"run": write_report(folder / "run"), "grid": write_report(write_results(folder / "grid.db"))}


@contextmanager
def opened(browser, path, width, scheme):
    """A page as it is shown, with everything unfolded, and what it says and asks for."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page, heard = context.new_page(), []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(element => { element.open = true })")
    yield page, heard
    context.close()


@pytest.mark.parametrize(
    ("name", "width", "scheme"), list(itertools.product(("run", "grid"), (390, 1280), ("light", "dark")))
)
def test_nothing_is_wider_than_the_page_and_nothing_is_said(browser, pages, name, width, scheme):
    with opened(browser, pages[name], width, scheme) as (page, heard):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert heard == []


# a check takes seconds; each width and each scheme is met with each page
@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [("run", 390, "dark"), ("run", 1280, "light"), ("grid", 390, "light"), ("grid", 1280, "dark")],
)
def test_axe_finds_nothing(browser, pages, name, width, scheme):
    with opened(browser, pages[name], width, scheme) as (page, _):
        page.evaluate(AXE)
        found = page.evaluate("axe.run()")["violations"]
    assert [(item["id"], [node["target"] for node in item["nodes"]]) for item in found] == []


def test_the_first_tab_leads_past_the_head(browser, pages):
    page = browser.new_page()
    page.goto(pages["run"].as_uri())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    page.close()


def test_print_unfolds_the_numbers(browser, pages):
    page = browser.new_page()
    page.goto(pages["run"].as_uri())
    hidden = """[...document.querySelectorAll("details table")]
        .filter(table => !table.checkVisibility({contentVisibilityAuto: true})).length"""
    assert page.evaluate(hidden) > 0
    page.emulate_media(media="print")
    page.wait_for_function(f"{hidden} === 0")  # the browser lays the page out anew first
    page.close()
