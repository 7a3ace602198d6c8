"""What mkdocs fills in from the code itself, so that it cannot go stale: ``{{ methods }}`` and the like in a page."""

import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from adabet.cli import app
from adabet.cli.methods import GROUPS
from adabet.methods import METHODS, Method

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"^\{\{ (\w+) \}\}$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in a page's marks; mkdocs calls this for every page.

    Raises:
        KeyError: if a mark has no such name.
    """
    return MARK.sub(lambda mark: TABLES[mark.group(1)](), markdown)


def methods() -> str:
    """Every registered method, by what it gives, with its source."""
    parts = []
    for kind, title in GROUPS.items():
        chosen = sorted((method for method in METHODS.values() if method.kind == kind), key=_adabet_first)
        rows = [(_link(method) + (" *" if method.budget else ""), method.summary, method.needs) for method in chosen]
        parts.append(f"### {title}\n\n" + table(("method", "chooses", "looks at"), rows))
    return "\n\n".join(parts)


def method_sources() -> str:
    """Where every method comes from."""
    return table(
        ("method", "source"), [(f"`{item.name}`", item.source) for item in sorted(METHODS.values(), key=_adabet_first)]
    )


def method_functions() -> str:
    """References to the functions behind all methods, each with its formula and options."""
    functions = {f"{item.start.__module__}.{item.start.__name__}": item.name for item in METHODS.values()}
    return "\n\n".join(f"::: {path}" for path in functions)


def commands() -> str:
    """Every command with its arguments, options and defaults, as the command line itself describes them."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def extras() -> str:
    """What each extra installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    hidden = ("dev", "docs")
    rows = [
        (f"`{name}`", ", ".join(f"`{re.split(r'[><=~ ]', item)[0]}`" for item in items))
        for name, items in project["optional-dependencies"].items()
        if name not in hidden
    ]
    return table(("extra", "brings"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods,
    "method_sources": method_sources,
    "method_functions": method_functions,
    "commands": commands,
    "extras": extras,
}
"""What a page can ask for."""


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _link(method: Method) -> str:
    return f"[`{method.name}`][{method.start.__module__}.{method.start.__name__}]"


def _adabet_first(method: Method) -> tuple[bool, str]:
    return method.name != "adabet", method.name


def _command(name: str, command: Any) -> str:
    arguments = [item for item in command.params if item.param_type_name == "argument"]
    options = [item for item in command.params if item.param_type_name == "option" and item.name != "help"]
    usage = " ".join([f"adabet {name}", *map(_shown_argument, arguments), *("[OPTIONS]" for _ in options[:1])])
    example = re.sub(r"^Example: ", "", command.epilog or "")
    parts = [f"## adabet {name}", inspect.cleandoc(command.help or ""), f"```text\n{usage}\n```", f"Example: {example}"]
    if arguments:
        parts.append(table(("argument", ""), [(f"`{_metavar(item)}`", item.help or "") for item in arguments]))
    parts.append(table(("option", "", "default"), [tuple(_option(item)) for item in options]))
    return "\n\n".join(parts)


def _shown_argument(argument: Any) -> str:
    name = _metavar(argument)
    return name if argument.required else f"[{name}]"


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _option(option: Any) -> Iterator[str]:
    names = [f"`{name}`" for name in (*option.opts, *option.secondary_opts)]
    yield " ".join(names)
    yield option.help or ""
    if option.required:
        yield "required"
    elif option.default is None or option.default is False:
        yield ""
    elif option.default is True:
        yield f"`{option.opts[0]}`"
    else:
        yield f"`{option.default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
