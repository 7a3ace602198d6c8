"""Run several batches through a model side by side, meeting at every layer.

Distances between samples of different batches need both batches' activations of one layer at the same moment,
but of one layer only. So each batch runs in a thread of its own; only one runs at a time; at a layer of interest it
waits for the others. What is in memory is what all batches hold at that layer, never a whole pass, and no
operation ever runs on more than one batch.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from adabet.errors import ActivationError

Meet = Callable[[str, list[Any]], None]
"""Called with the name of the meeting point and what each runner brought."""


class _AbandonedError(BaseException):
    """Unwinds a runner after another one failed, through any ``except Exception`` on its way."""


class Lockstep:
    """Functions that run in turns and wait for each other at named points.

    Args:
        meet: called once all have arrived at a point.

    Examples:
        >>> met = []
        >>> steps = Lockstep(lambda point, values: met.append((point, values)))
        >>> steps.run([lambda i=i: steps.arrive("a", i) for i in range(3)])
        >>> met
        [('a', [0, 1, 2])]
    """

    def __init__(self, meet: Meet) -> None:
        self._meet = meet
        self._turns: list[threading.Semaphore] = []
        self._brought: list[tuple[str, Any] | None] = []
        self._failure: BaseException | None = None
        self._local = threading.local()

    @property
    def index(self) -> int:
        """Which of the functions is asking."""
        return int(self._local.index)

    def run(self, functions: Sequence[Callable[[], Any]]) -> None:
        """Run all functions to their ends.

        Raises:
            ActivationError: if they do not pass through the same points in the same order.
            BaseException: whatever one of them raised first.
        """
        self._turns = [threading.Semaphore(0) for _ in functions]
        self._brought = [None] * len(functions)
        self._failure = None
        settings = _ThreadSettings()
        # not Thread.join: interrupted once, it takes the thread for ended ever after (CPython before 3.13)
        ends = [threading.Event() for _ in functions]
        for index, (function, end) in enumerate(zip(functions, ends, strict=True)):
            threading.Thread(target=self._runner, args=(index, function, settings, end), daemon=True).start()
        try:
            self._turns[0].release()
            for end in ends:
                end.wait()
        except BaseException as interrupt:
            self._fail(interrupt)
            for end in ends:
                end.wait()
        if self._failure is not None:
            raise self._failure

    def arrive(self, point: str, value: Any) -> None:
        """Wait at a point, with something to show, until all others are there and the meeting is over."""
        index = self.index
        if self._failure is not None:
            raise _AbandonedError
        self._brought[index] = (point, value)
        self._pass_turn(index)
        self._turns[index].acquire()
        if self._failure is not None:
            raise _AbandonedError

    def _runner(
        self, index: int, function: Callable[[], Any], settings: "_ThreadSettings", end: threading.Event
    ) -> None:
        self._local.index = index
        self._turns[index].acquire()
        try:
            if self._failure is None:
                with settings.entered():
                    function()
            self._pass_turn(index)
        except _AbandonedError:
            return
        except BaseException as error:
            self._fail(error)
        finally:
            end.set()

    def _pass_turn(self, index: int) -> None:
        """Let the next one run; after the last, hold the meeting and start over."""
        if self._failure is not None:
            return
        if index + 1 < len(self._turns):
            self._turns[index + 1].release()
            return
        try:
            go_on = self._hold_meeting()
        except BaseException as error:
            self._fail(error)
            return
        if go_on:
            self._turns[0].release()

    def _hold_meeting(self) -> bool:
        """Show what all brought, and let it go; False if all have come to their ends instead."""
        arrivals = [arrival for arrival in self._brought if arrival is not None]
        points = {point for point, _ in arrivals}
        if len(points) > 1 or 0 < len(arrivals) < len(self._brought):
            raise ActivationError(
                f"layer {min(points)!r} does not run alike for all batches; give batches that take the same path"
            )
        if arrivals:
            self._meet(arrivals[0][0], [value for _, value in arrivals])
            self._brought = [None] * len(self._brought)
        return bool(arrivals)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        for turn in self._turns:
            turn.release()


class _ThreadSettings:
    """torch's thread-local settings of the thread that made it, for others to enter."""

    def __init__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._autocast = [
            (device, torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
            if torch.is_autocast_enabled(device)
        ]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have the settings in this thread."""
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self._grad))
            for device, dtype in self._autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype))
            yield
