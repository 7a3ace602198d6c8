"""What is compared: models x data x methods x shares x learning rates x seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from adabet.errors import OptionError
from adabet.experiments.specs import DataSpec, MethodSpec, ModelSpec, Settings, Share

LEARNING_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
"""Candidates unless others are given; half an order of magnitude apart."""

SEARCHES = ("uphill", "all")

Spec = TypeVar("Spec", ModelSpec, DataSpec, MethodSpec)


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method on a model and data, with its share.

    Attributes:
        model: what is adapted.
        data: what to.
        method: who chooses.
        share: how much may train; None for a method without such a knob.
    """

    model: ModelSpec
    data: DataSpec
    method: MethodSpec
    share: Share | None

    def __str__(self) -> str:
        share = "" if self.share is None else f" ({self.share})"
        return f"{self.method.label}{share} on {self.model.label}, {self.data.label}"


@dataclass(frozen=True)
class Grid:
    """A comparison, checked as a whole when it is made.

    Attributes:
        models: what is adapted.
        data: to what.
        methods: who chooses what trains.
        shares: how much may train: ratios of the layers, or budgets of memory. Methods without such a knob run once.
        learning_rates: candidates, ascending; one leaves nothing to search.
        seeds: of head, samples, selection and order; the first one searches the learning rate.
        search: ``"uphill"``: with the first seed, from the middle rate to the best on validation, then that rate with
            all seeds; ``"all"``: every rate with every seed, the best by mean.
        settings: how everything trains.
        selection_memory: whether to measure what choosing takes at its peak, in a process of its own.

    Raises:
        OptionError: if something makes no sense; UnknownNameError for a method, with the nearest there is.
    """

    models: tuple[ModelSpec, ...]
    data: tuple[DataSpec, ...]
    methods: tuple[MethodSpec, ...]
    shares: tuple[Share, ...] = (Share(layer_ratio=0.1),)
    learning_rates: tuple[float, ...] = LEARNING_RATES
    seeds: tuple[int, ...] = (0, 1, 2)
    search: str = "uphill"
    settings: Settings = field(default_factory=Settings)
    selection_memory: bool = True

    def __post_init__(self) -> None:
        for name in ("models", "data", "methods", "shares", "learning_rates", "seeds"):
            if not getattr(self, name):
                raise OptionError(f"expected at least one of {name} to compare, got none")
        for name in ("models", "data", "methods"):
            _refuse_twice(name, [spec.label for spec in getattr(self, name)])
        for name in ("shares", "learning_rates", "seeds"):
            _refuse_twice(name, [str(value) for value in getattr(self, name)])
        for rate in self.learning_rates:
            if not 0 < rate < float("inf"):
                raise OptionError(f"expected learning rates above zero, got {rate}")
        object.__setattr__(self, "learning_rates", tuple(sorted(self.learning_rates)))
        if self.search not in SEARCHES:
            raise OptionError(f"expected search to be {' or '.join(SEARCHES)}, got {self.search!r}")
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise OptionError(f"expected seeds of whole numbers from 0 to 2^32 - 1, got {seed}")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The lines of the table, methods within data within models; one a share that makes a difference."""
        return tuple(
            Entry(model, data, method, share)
            for model in self.models
            for data in self.data
            for method in self.methods
            for share in self._shares_of(method)
        )

    def _shares_of(self, method: MethodSpec) -> Sequence[Share | None]:
        return [share for share in self.shares if method.takes(share)] or (None,)

    def to_dict(self) -> dict[str, Any]:
        """The grid as JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Grid":
        """A grid from a file's values; a model, data or method may be its name alone.

        Keys are the attributes, ``layer_ratios`` and ``budgets`` in the place of shares, and the settings; ``seeds``
        may be their number.

        Raises:
            OptionError: if a key is unknown or a value makes no sense.
        """
        _refuse_strangers("a grid", values, KEYS)
        given = dict(values)
        shares = [Share(**share) for share in given.pop("shares", ())]
        shares += [Share(layer_ratio=ratio) for ratio in _list("layer_ratios", given.pop("layer_ratios", ()))]
        shares += [Share(memory=str(budget)) for budget in _list("budgets", given.pop("budgets", ()))]
        if shares:
            given["shares"] = tuple(shares)
        settings = dict(given.pop("settings", {}))
        settings |= {name: given.pop(name) for name in SETTINGS if name in given}
        _refuse_strangers("settings", settings, SETTINGS)
        given["models"] = tuple(_spec(ModelSpec, "models", item) for item in _list("models", given.get("models", ())))
        given["data"] = tuple(_spec(DataSpec, "data", item) for item in _list("data", given.get("data", ())))
        given["methods"] = tuple(
            _spec(MethodSpec, "methods", item) for item in _list("methods", given.get("methods", ()))
        )
        if isinstance(given.get("seeds"), int):
            given["seeds"] = range(given["seeds"])
        for name in ("learning_rates", "seeds"):
            if name in given:
                given[name] = tuple(_list(name, given[name]))
        try:
            return cls(**given, settings=Settings(**settings))
        except TypeError as error:
            raise OptionError(f"a value of the grid is of the wrong kind: {error}") from error


SETTINGS = frozenset(item.name for item in fields(Settings))
KEYS = frozenset(item.name for item in fields(Grid)) | SETTINGS | {"layer_ratios", "budgets"}


def read_grid(path: Path) -> dict[str, Any]:
    """What a grid file says: TOML, or JSON where it ends in ``.json``.

    Raises:
        OptionError: if it cannot be read, or is neither.
    """
    import json
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise OptionError(f"could not read the grid {path}: {error.strerror}") from error
    except ValueError as error:
        raise OptionError(f"the grid {path} is no {path.suffix.lstrip('.').upper() or 'TOML'}: {error}") from error
    if not isinstance(values, dict):
        raise OptionError(f"expected the grid {path} to hold names and values, got a {type(values).__name__}")
    return values


def _spec(kind: type[Spec], name: str, item: Any) -> Spec:
    """A model, data or method from its name, or from a table of values."""
    first = fields(kind)[0].name
    values = {first: item} if isinstance(item, str) else item
    if not isinstance(values, Mapping) or first not in values:
        raise OptionError(f"expected each of {name} as a name, or as a table with {first!r}; got {item!r}")
    _refuse_strangers(f"an entry of {name}", values, [item.name for item in fields(kind)])
    try:
        return kind(**values)
    except TypeError as error:
        raise OptionError(f"a value in {name} is of the wrong kind: {error}") from error


def _list(name: str, values: Any) -> Sequence[Any]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise OptionError(f"expected a list of {name}, got {values!r}")
    return list(values)


def _refuse_strangers(what: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    for name in values:
        if name not in known:
            raise OptionError(f"{what} takes no {name!r}; it takes {', '.join(sorted(known))}")


def _refuse_twice(name: str, labels: Sequence[str]) -> None:
    for label in labels:
        if labels.count(label) > 1:
            raise OptionError(f"expected {name} to differ, got {label!r} twice; give each a label of its own")
