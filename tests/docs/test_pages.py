"""Every page: its blocks run, its commands exist, and it prints what it says."""

import gc
import re
from functools import partial

import pytest
import torch

import adabet
from adabet.methods import METHODS
from tests.docs.pages import COMMANDS, NOT_RUN, ROOT, check_commands, difference, parsed, shown_in
from tests.docs.readme import readme_names

PAGES = [*sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")), "README.md"]
LIBRARY_WARNINGS = [
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",  # PEFT, of transformers
    "ignore:.isinstance.treespec, LeafSpec.:FutureWarning",  # Lightning, of torch
    "ignore::DeprecationWarning",
    "ignore:.*module.s. in eval mode at the start of training",  # Lightning, of frozen batch-norms
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:GPU available",
    "ignore:The number of training batches",
]
BLOCK = re.compile(r"^([ \t]*)(`{3,}).*?^\1\2", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
OPTION = re.compile(r"(?<!\S)--[a-z][\w-]*")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A folder, a registry of methods and random states of its own."""
    known, threads = dict(METHODS), torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield
    METHODS.clear()
    METHODS.update(known)
    torch.set_num_threads(threads)
    gc.collect()


def filtered(function):
    for text in LIBRARY_WARNINGS:
        function = pytest.mark.filterwarnings(text)(function)
    return function


@filtered
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_is_so(page, monkeypatch):
    document = parsed(ROOT / page)
    if page == "README.md":
        document.namespace.update(readme_names())
        monkeypatch.setattr(adabet, "fit", partial(adabet.fit, epochs=1))  # not the default 30
    for example in document:
        example.evaluate()


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page):
    text = BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    parameters = [item for command in COMMANDS.commands.values() for item in command.params]
    known = {"--help"} | {option for item in parameters for option in (*item.opts, *item.secondary_opts)}
    for inline in INLINE.findall(text):
        if inline.startswith(("adabet ", "--")):
            assert set(OPTION.findall(inline)) <= known, inline
        if match := re.match(r"adabet ([a-z]+)", inline):
            assert match.group(1) in COMMANDS.commands, inline


def test_what_does_not_run_says_why():
    skipped = [shown_in(region) for page in PAGES for _, region in parsed(ROOT / page).regions]
    reasons = [shown.title.removeprefix(NOT_RUN) for shown in skipped if not shown.runs]
    assert all(len(reason.split()) > 2 for reason in reasons)
    assert len(reasons) < 5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("adabet rnak demo photos/", "no command 'rnak'"),
        ("adabet rank demo photos/ --layer-share 0.1", "--layer-share"),
        ("adabet rank demo", "Missing parameter"),
        ("adabet tune demo photos/ --epochs many", "many"),
        ("make coffee", "coffee"),
        ("pip install 'adabet[visions]'", "visions"),
        ("adabte demo", "adabte"),
    ],
)
def test_a_wrong_command_is_found(line, said):
    with pytest.raises(AssertionError, match=re.escape(said)):
        check_commands(line)


@pytest.mark.parametrize(
    ("shown", "printed", "tolerance"),
    [("peak 10 MB", "peak 11 MB", 0.0), ("peak 10 MB", "peak 11 MB", 0.05), ("a 1", "b 1", 1.0), ("1 2", "1", 1.0)],
)
def test_a_wrong_output_is_found(shown, printed, tolerance):
    assert difference(shown, printed, tolerance)


def test_layout_times_and_resident_memory_do_not_count():
    shown = "a   b\n────\nin 3 s\nresident memory rose by 2 MB"
    assert difference(shown, "a b\n──────────\nin 40 s\nresident memory rose by 9 GB") is None


@pytest.mark.parametrize("fence", ["```python hl_lines=1\nx = 1\n```", "```pycon\n>>> 1\n```"])
def test_a_block_that_would_go_by_unseen_is_an_error(fence, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(fence + "\n")
    with pytest.raises((ValueError, AssertionError), match="expected"):
        [example.evaluate() for example in parsed(page)]


def test_a_block_that_fails_fails_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\nText.\n\n```python\nprint(x + 1)\n```\n\n```text\n3\n```\n")
    *before, last = parsed(page)
    assert len(before) == 2
    for example in before:
        example.evaluate()
    with pytest.raises(AssertionError, match="shown 3, printed 2"):
        last.evaluate()
