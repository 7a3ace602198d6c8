"""Runs what the pages show: their Python, their commands, and what both are said to print.

In a page's fenced blocks

- ``python`` runs, in the namespace of the page's blocks before it;
- ``console`` has its commands checked against the command line: names, options and values;
- ``text`` right behind one of them is what it prints. Behind ``console`` it makes the commands run, too. Times do not
  count, and figures may differ as far as the title says: ``title="Output, figures within 10 %"``;
- ``title="Not run here: ..."`` tells readers and tests why a block does not run.

Anything else that calls itself Python or a console is an error, so that no block goes by unseen.
"""

import io
import re
import shlex
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer
from typer.testing import CliRunner

from adabet.cli import app

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'(?P<language>[\w+-]+)(?: +title="(?P<title>[^"]*)")?(?P<rest>[^\n]*)\n')
NOT_RUN = "Not run here: "
WITHIN = re.compile(r"figures within (\d+) %")
FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
TIME = re.compile(r"(?<=in )\d[\d,.]* s\b")
UNSTEADY = re.compile(r"^resident memory.*$", re.MULTILINE)
RULES = re.compile(r"[─━]+")
KINDS = ("python", "console", "text", "pycon")
COMMANDS = typer.main.get_command(app)


@dataclass
class Shown:
    """A fenced block."""

    language: str
    title: str
    source: str

    @property
    def runs(self) -> bool:
        return not self.title.startswith(NOT_RUN)

    @property
    def tolerance(self) -> float:
        within = WITHIN.search(self.title)
        return int(within.group(1)) / 100 if within else 0.0


class Blocks:
    """A sybil parser for one page: it remembers what the last block printed."""

    def __init__(self) -> None:
        self._printed: str | None = None
        self._again: Callable[[], str] | None = None
        self._python = PythonEvaluator()
        self._end = 0

    def __call__(self, document: Document) -> Iterable[Region]:
        for region in RawFencedCodeBlockLexer(FENCE)(document):
            if region.lexemes["language"] in KINDS:
                region.parsed = region.lexemes["source"]
                region.evaluator = self.evaluate
                yield region

    def evaluate(self, example: Example) -> str | None:
        shown = shown_in(example.region)
        follows = not example.document.text[self._end : example.start].strip()
        self._end = example.end
        if shown.language == "text":
            return self._compare(shown) if follows and (self._printed is not None or self._again) else None
        self._printed = self._again = None
        if not shown.runs:
            compile(shown.source, example.path, "exec") if shown.language == "python" else check_commands(shown.source)
        elif shown.language == "python":
            with redirect_stdout(io.StringIO()) as out:
                self._python(example)
            self._printed = out.getvalue()
        elif shown.language == "console":
            lines = check_commands(shown.source)
            self._again = lambda: "\n".join(run_command(line) for line in lines)
        else:
            return f"expected python or console, got {shown.language}: its lines would not be tested"
        return None

    def _compare(self, shown: Shown) -> str | None:
        if not shown.runs:
            return None
        printed = self._printed if self._again is None else self._again()
        self._printed = self._again = None
        assert printed is not None
        return difference(shown.source, printed, shown.tolerance)


def shown_in(region: Region) -> Shown:
    """The block of a region.

    Raises:
        ValueError: if there is more behind its fence than a title.
    """
    if region.lexemes["rest"].strip():
        raise ValueError(f"expected a language and a title behind the fence, got {region.lexemes['rest']!r}")
    return Shown(region.lexemes["language"], region.lexemes["title"] or "", str(region.lexemes["source"]))


def parsed(path: Path) -> Document:
    """A page in its blocks."""
    return Sybil([Blocks()]).parse(path)


def difference(shown: str, printed: str, tolerance: float = 0.0) -> str | None:
    """What is wrong with an output that a page shows, or None.

    Examples:
        >>> difference("took 10 MB in 3 s", "took 10.4 MB in 7 s", 0.05)
        >>> difference("took 10 MB", "took 11 MB", 0.05)
        'figures differ by more than 5 %: shown 10, printed 11'
    """
    texts = [UNSTEADY.sub("", TIME.sub("", RULES.sub("", text))) for text in (shown, printed)]
    words = [FIGURE.sub("0", text).split() for text in texts]
    figures = [FIGURE.findall(text) for text in texts]
    if words[0] != words[1] or len(figures[0]) != len(figures[1]):
        return f"shown:\n{shown}\nprinted:\n{printed}"
    for expected, found in zip(*figures, strict=True):
        wanted, got = (float(text.replace(",", "")) for text in (expected, found))
        if abs(wanted - got) > tolerance * max(abs(wanted), abs(got)):
            return f"figures differ by more than {tolerance:.0%}: shown {expected}, printed {found}".replace("%", " %")
    return None


def check_commands(source: str) -> list[str]:
    """Check each line of a console block, and give those that are adabet's.

    Raises:
        AssertionError: if a command, option or value does not exist; names it.
    """
    lines = [line.split("  #")[0].strip() for line in source.replace("\\\n", " ").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    for line in lines:
        words = shlex.split(line)
        known = CHECKS.get(words[0])
        assert known is not None, f"a program that no test knows: {line}"
        known(words[1:])
    return [line for line in lines if line.startswith("adabet ")]


def check_adabet(words: list[str]) -> None:
    """Parse a command as the command line does, without running it."""
    name, *arguments = words
    command = COMMANDS.commands.get(name)  # type: ignore[attr-defined]
    assert command is not None, f"adabet has no command {name!r}"
    try:
        command.make_context(name, arguments)
    except Exception as error:  # typer brings its own copy of click's errors
        message = getattr(error, "message", None) or str(error)
        raise AssertionError(f"adabet {' '.join(words)}: {message}") from error


def check_make(words: list[str]) -> None:
    """Whether the Makefile has such targets."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target {target!r} in the Makefile"


def check_pip(words: list[str]) -> None:
    """Whether the extras that are to be installed exist."""
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for word in words:
        if match := re.fullmatch(r"(?:adabet|\.)\[([\w,]+)\]", word):
            for extra in match.group(1).split(","):
                assert re.search(rf"^{extra} = \[", extras, re.MULTILINE), f"no extra {extra!r} in pyproject.toml"


def check_environment(words: list[str]) -> None:
    """The command behind ``env NAME=VALUE``."""
    rest = [word for word in words if "=" not in word.partition(" ")[0] or word.startswith("-")]
    CHECKS[rest[0]](rest[1:])


def unchecked(words: list[str]) -> None:
    """Programs that are not ours."""


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "adabet": check_adabet,
    "make": check_make,
    "pip": check_pip,
    "env": check_environment,
    "git": unchecked,
    "cd": unchecked,
    "python": unchecked,
    "python3": unchecked,
    "source": unchecked,
    "sudo": unchecked,
    "torchrun": unchecked,
    "accelerate": unchecked,
    "export": unchecked,
}


def run_command(line: str) -> str:
    """What a command of adabet prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "88")
        patch.setattr("adabet.cli.show.out.width", 88)
        done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"
    return done.stdout
