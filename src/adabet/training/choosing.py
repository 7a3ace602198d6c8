"""Who decides what trains in a run: the user, a method once, a plan for a budget, or a method that goes on choosing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from adabet.errors import OptionError
from adabet.methods import Dynamic, find_method, select, start
from adabet.planning import Plan, plan
from adabet.selection import Selection
from adabet.sizes import parse_size
from adabet.training.processes import Processes
from adabet.training.run_folder import RunFolder


@dataclass(frozen=True)
class Way:
    """What trains, and how.

    Attributes:
        selection: made once, or None.
        dynamic: the method that goes on choosing, or None.
        micro_batch: samples at once by a plan, or None.
        recompute: whether a plan wants blocks recomputed.
        plan: the plan as JSON, or None.
    """

    selection: Selection | None = None
    dynamic: Dynamic | None = None
    micro_batch: int | None = None
    recompute: bool = False
    plan: str | None = None

    @classmethod
    def of(cls, planned: Plan) -> "Way":
        """The way of a plan."""
        return cls(
            planned.selection,
            micro_batch=planned.micro_batch,
            recompute=planned.recompute,
            plan=planned.to_json(),
        )


class Chooser:
    """The arguments of `adabet.fit` that say what trains.

    Args:
        selection: the user's, or None to let the method choose.
        method: its name.
        layer_ratio: see `adabet.fit`.
        channel_ratio: see `adabet.fit`.
        memory: see `adabet.fit`.
        options: of the method and of `Request`.

    Raises:
        OptionError: if they contradict each other.
        UnknownNameError: if there is no such method.
    """

    def __init__(
        self,
        selection: Selection | Plan | None,
        *,
        method: str,
        layer_ratio: float | None,
        channel_ratio: float,
        memory: str | float | None,
        options: Mapping[str, Any],
    ) -> None:
        if selection is not None and memory is not None:
            raise OptionError("expected memory without a selection; to keep to a budget give a plan, see adabet.plan")
        self._selection = selection
        self._method = find_method(method)
        self._ratio, self._channel_ratio = layer_ratio, channel_ratio
        self._memory = None if memory is None else parse_size(memory)
        self._options = dict(options)

    def choose(self, model: nn.Module, batches: Iterable[Any], run: RunFolder | None, processes: Processes) -> Way:
        """What trains; what the main process, or the run before it was killed, has chosen once is kept."""
        if isinstance(self._selection, Plan):
            return Way.of(self._selection)
        if self._selection is not None:
            return Way(self._selection)
        if self._method.kind == "selects again" or self._options.get("every") is not None:
            return Way(dynamic=self._begun(model, batches))
        if self._memory is not None and not self._method.budget:
            text = processes.from_main(self._planned(model, batches, run) if processes.main else None)
            return Way.of(Plan.from_json(text))
        text = processes.from_main(self._chosen(model, batches, run) if processes.main else None)
        return Way(Selection.from_json(text))

    def _begun(self, model: nn.Module, batches: Iterable[Any]) -> Dynamic:
        found = start(
            self._method.name,
            model,
            batches,
            layer_ratio=0.1 if self._ratio is None else self._ratio,
            channel_ratio=self._channel_ratio,
            memory=self._memory,
            **self._options,
        )
        if not isinstance(found, Dynamic):
            raise OptionError(f"expected {self._method.name!r} to select again while training, it does not")
        return found

    def _planned(self, model: nn.Module, batches: Iterable[Any], run: RunFolder | None) -> str:
        if run is not None and run.plan.is_file():
            return run.plan.read_text(encoding="utf-8")
        own = {name: value for name, value in self._options.items() if name not in ("micro_batch", "val_batches")}
        planned = plan(
            model,
            batches,
            memory=self._memory or 0,
            method=self._method.name,
            layer_ratio=1.0 if self._ratio is None else self._ratio,
            **own,
        )
        return planned.to_json()

    def _chosen(self, model: nn.Module, batches: Iterable[Any], run: RunFolder | None) -> str:
        if run is not None and run.selection.is_file():
            return run.selection.read_text(encoding="utf-8")
        chosen = select(
            self._method.name,
            model,
            batches,
            layer_ratio=0.1 if self._ratio is None else self._ratio,
            channel_ratio=self._channel_ratio,
            memory=self._memory,
            **self._options,
        )
        return chosen.to_json()
