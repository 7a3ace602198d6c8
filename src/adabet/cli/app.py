"""The `adabet` command and how its errors end."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from adabet.cli.show import fail
from adabet.errors import AdabetError, StorageError, TrainingError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


class _Group(TyperGroup):
    """Commands whose errors are one line on standard error and an exit code that means something."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (TrainingError, StorageError) as error:
            fail(str(error))
            sys.exit(FAILED)
        except AdabetError as error:
            fail(str(error))
            sys.exit(WRONG_INPUT)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fail("out of memory; give --memory, a budget that there is room for, or a smaller --micro-batch")
            sys.exit(FAILED)
        except KeyboardInterrupt as stop:
            fail(str(stop) or "interrupted")
            sys.exit(INTERRUPTED)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by Python, a device, or torch's allocator on the CPU, which has no class for it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Adapt a pre-trained network where memory is short: choose the layers worth training from unlabelled "
    "samples, and train only those.",
    epilog="Exit codes: 0 done, 1 failed while working, 2 wrong input, 130 interrupted (a run can be resumed).",
)


@app.callback()
def _root() -> None:
    pass


def _register() -> None:
    """Enter the commands, in the order that the help shows."""
    from adabet.cli import compare, demo, export, memory, methods, plan, rank, report, reproduce, tune

    for module in (demo, rank, plan, tune, export, compare, reproduce, report, memory, methods):
        app.command(epilog=module.EXAMPLE)(module.command)


_register()
