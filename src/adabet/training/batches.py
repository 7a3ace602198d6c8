"""What training asks of loaders: a length if they have one, and batches of one kind."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from adabet.errors import DataError


def length_of(loader: Iterable[Any]) -> int | None:
    """Batches that a loader says it gives, or None if it does not know."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def checked(loader: Iterable[Any], name: str) -> Iterator[Any]:
    """The batches of a loader, each compared with the first.

    Args:
        loader: gives batches.
        name: such as ``"training"``, for messages.

    Raises:
        DataError: if a batch is a mapping with other keys than the first, or of another kind.
    """
    first: Any = None
    for number, batch in enumerate(loader, start=1):
        first = batch if number == 1 else first
        if isinstance(batch, Mapping) != isinstance(first, Mapping):
            raise DataError(
                f"expected {name} batches of one kind, the first is a {type(first).__name__} and "
                f"number {number} a {type(batch).__name__}"
            )
        if isinstance(batch, Mapping) and batch.keys() != first.keys():
            raise DataError(
                f"expected every {name} batch to have the keys {', '.join(map(str, first))}; "
                f"number {number} has {', '.join(map(str, batch))}"
            )
        yield batch
