"""The bar for the terminal; the library itself says nothing."""

import io

from rich.console import Console

from adabet.training import TerminalProgress, fit
from tests.training.nets import choose_last, make_loaders, make_net


def test_a_line_per_epoch_on_the_console_that_was_given():
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=False)
    model = make_net()
    fit(model, *make_loaders(), choose_last(model), lr=0.05, epochs=2, progress=TerminalProgress(console))
    lines = [line for line in text.getvalue().splitlines() if line.startswith("epoch ")]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("train loss" in line and "val accuracy" in line for line in lines)


def test_a_loader_of_unknown_length():
    text = io.StringIO()
    progress = TerminalProgress(Console(file=text, width=120))
    progress.start(epochs=1, first_epoch=1, steps=None)
    progress.step(epoch=1, step=1, loss=0.5)
    progress.stop()


def test_silence(capfd):
    model = make_net()
    fit(model, *make_loaders(), choose_last(model), epochs=1)
    assert capfd.readouterr() == ("", "")
