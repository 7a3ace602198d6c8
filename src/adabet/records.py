"""Results as versioned JSON: one envelope for everything that adabet writes and reads back."""

import json
from typing import Any

from adabet.errors import CheckpointError

VERSION = 1


def write_record(kind: str, values: dict[str, Any]) -> str:
    """JSON text of a result, with its kind and version in front.

    Examples:
        >>> read_record("adabet/note", write_record("adabet/note", {"text": "hello"}))
        {'text': 'hello'}
    """
    return json.dumps({"kind": kind, "version": VERSION, **values}, indent=1)


def read_record(kind: str, text: str) -> dict[str, Any]:
    """The values that `write_record` was given.

    Raises:
        CheckpointError: if the text is not JSON, of another kind, or of a newer version.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"expected a file of kind {kind!r}, this one is not JSON: {error}") from error
    found = values.pop("kind", None) if isinstance(values, dict) else None
    if found != kind:
        raise CheckpointError(f"expected a file of kind {kind!r}, got {found!r}")
    version = values.pop("version", None)
    if version != VERSION:
        raise CheckpointError(
            f"expected version {VERSION} of {kind!r}, got {version!r}; write it anew with this version of adabet"
        )
    return dict(values)
