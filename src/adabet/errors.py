"""Every error that a user can meet. Each also inherits the builtin that it refines."""

import difflib
from collections.abc import Iterable

SHOWN = 12
"""Names that an error lists at most."""


class AdabetError(Exception):
    """Base of all errors raised on purpose by adabet."""


class OptionError(AdabetError, ValueError):
    """An option has a value that makes no sense; the message names the option and what it takes."""


class LayerError(AdabetError, ValueError):
    """The model has no layer that fits: nothing trainable, nothing that runs, or an unknown name."""


class ActivationError(AdabetError, ValueError):
    """Activations or distances cannot be used: not finite, of unequal shape, or too few."""


class SelectionError(AdabetError, ValueError):
    """A ranking or selection does not fit: made for another model, or asked for what it lacks."""


class ModelError(AdabetError, ValueError):
    """A model cannot be built, or its weights do not fit."""


class DataError(AdabetError, ValueError):
    """A dataset cannot be used: missing, empty, or in another layout than expected."""


class RunError(AdabetError, FileExistsError):
    """A run folder cannot be used: it holds another run, or none to resume."""


class CheckpointError(AdabetError, ValueError):
    """A checkpoint, delta or result file is corrupt, foreign, or of another version."""


class StorageError(AdabetError, OSError):
    """A file could not be written; whatever stood there before is still whole."""


class TrainingError(AdabetError, RuntimeError):
    """Training cannot go on: a loss that is not finite, or a model that mixes samples."""


class LeanError(AdabetError, RuntimeError):
    """An operation asks for more than the lean mode keeps, such as a double backward."""


class BudgetError(AdabetError, ValueError):
    """No plan fits the memory budget; the message names the smallest budget that works."""


class MissingExtraError(AdabetError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


class UnknownNameError(AdabetError, LookupError):
    """A name that is not registered; the message offers the nearest that is."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:SHOWN])}{more}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class AdabetWarning(UserWarning):
    """Something that a user should know but that does not stop the work."""
