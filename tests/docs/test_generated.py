"""What the pages list is what there is: methods, commands, options, lean operations, extras."""

import importlib.util
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import adabet
from adabet.cli import app
from adabet.lean.rules import RULES
from adabet.methods import METHODS
from tests.docs.pages import COMMANDS, ROOT

DOCS = ROOT / "docs"
CELL = re.compile(r"`([a-z_0-9]+)`")


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(name):
    return (DOCS / name).read_text(encoding="utf-8")


def test_every_mark_of_a_page_is_filled_in(hooks):
    found = {mark for path in DOCS.rglob("*.md") for mark in hooks.MARK.findall(path.read_text(encoding="utf-8"))}
    assert found == hooks.TABLES.keys()


def test_an_unknown_mark_is_an_error(hooks):
    with pytest.raises(KeyError):
        hooks.on_page_markdown("before\n\n{{ nothing }}\n")


def test_every_method_is_listed_with_its_source(hooks):
    listed = hooks.methods()
    for method in METHODS.values():
        (row,) = [line for line in listed.splitlines() if f"[`{method.name}`]" in line]
        assert method.summary in row
        assert (" * |" in row) == method.budget
        assert hooks.table(("a", "b"), [(f"`{method.name}`", method.source)]).splitlines()[-1] in hooks.method_sources()


def test_every_command_is_described_as_its_help_describes_it(hooks, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    parts = dict(re.findall(r"^## adabet (\w+)\n(.*?)(?=^## |\Z)", hooks.commands(), re.DOTALL | re.MULTILINE))
    assert list(parts) == list(COMMANDS.commands)
    for name, text in parts.items():
        shown = CliRunner().invoke(app, [name, "--help"]).output
        rows = re.findall(r"^│ \*?\s*((?:--[\w-]+[, ]*)+)", shown, re.MULTILINE)
        options = {option for row in rows for option in re.findall(r"--[\w-]+", row)} - {"--help"}
        assert options
        assert set(re.findall(r"`(--[a-z][\w-]*)`", text)) == options


def test_every_lean_operation_is_in_the_table():
    rows = [line.split("|")[1] for line in page("explanation/freezing.md").splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in CELL.findall(row.partition("(")[0])}
    there = {operation.__name__ for operation in RULES}
    assert listed == {name for name in there if not name.startswith("__")}


def test_all_that_is_public_has_its_place_in_the_reference():
    pages = [path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")]
    shown = {name for text in pages for name in re.findall(r"^::: adabet\.(\w+)$", text, re.MULTILINE)}
    assert set(adabet.__all__) - shown == set()


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pathlib, figures; "
        "figures.PICTURES = pathlib.Path(sys.argv[2]); figures.main()"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(DOCS), str(tmp_path)], check=True)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "pictures").iterdir()}
    for name in drawn:
        new, kept = (
            re.findall(r">(?:<!-- )?([^<>]*b1 = \d+|[a-z :]+loop[a-z :]*)", (folder / name).read_text())
            for folder in (tmp_path, DOCS / "pictures")
        )
        assert new == kept
        assert (DOCS / "pictures" / name).stat().st_size < 60_000
