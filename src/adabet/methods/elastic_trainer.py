"""ElasticTrainer: the tensors that lower the loss most within a share of the training time, chosen again and again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabet.errors import CheckpointError, OptionError, SelectionError
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.elastic_probe import IMPORTANCE, MODES, find_importance
from adabet.methods.elastic_profile import Profile, profile_backward
from adabet.methods.elastic_solver import QUANTA, SOLVERS, backward_ratio, choose, time_of
from adabet.methods.registry import Request, register
from adabet.methods.tensors import choose_tensors

PROFILES = {"measured": "seconds", "macs": "macs"}


@register(
    "elastic-trainer",
    needs="labels, a timing profile, at times a whole backward pass",
    source="Huang et al. 2023, MobiSys",
)
def elastic_trainer(
    request: Request,
    *,
    speedup: float = 0.533,
    interval: int = 4,
    profile: str | os.PathLike[str] | Profile = "measured",
    importance: str = "update",
    solver: str = "exact",
    quanta: int = QUANTA,
    disco: bool = True,
    profile_samples: int = 4,
    mode: str = "eval",
) -> Dynamic:
    """Tensors that lower the loss most in a share of the training time, chosen again and again.

    In a backward pass each tensor k, a weight or a bias, takes ``t_dw[k]`` for its own gradient and ``t_dy[k]`` to pass
    the error on through it. With importances I, the set m is chosen that maximises ``sum(I[k] * m[k])`` while
    ``sum(t_dw[k] * m[k]) + sum(t_dy[k] for k from the output to the deepest chosen)`` stays within the share ``rho_b``
    of the whole backward pass: ``rho_b = speedup * (1 + r) - r``, with r the measured ratio of forward to backward
    time, or 1/2 without. I is by how much one step of the run's optimizer, with the state that it has by then, lowers
    the loss of a batch, tensor by tensor and to first order (`find_importance`).

    The probe takes two forward and backward passes through everything, at the start of the run and every ``interval``
    epochs. For that moment it needs the gradients, a copy of the weights and the optimizer's state of all tensors at
    once, whatever trains in between; micro-batches keep the activations small, no more. A measured profile keeps stock
    autograd's graph over ``profile_samples`` samples, once. The layer and channel ratios mean nothing here.

    Args:
        request: model, batches with labels and what all methods share.
        speedup: wanted training time over that of training everything, the paper's rho.
        interval: epochs between selections.
        profile: ``"measured"`` on this device at the start; ``"macs"``, counted, the same everywhere; or a
            `Profile` or the path of a file with its JSON, made once per device by `profile_backward`.
        importance: ``"update"``, or the paper's ablations ``"magnitude"`` (of the weights) or ``"gradient"``.
        solver: ``"exact"``, or ``"reference"`` for the paper's dynamic program, see `choose`.
        quanta: how finely times are told apart, the paper's Tq.
        disco: shrink the limit by what rounding took off the times, as the paper's code does.
        profile_samples: samples that the profile is made with.
        mode: of the probe: ``"eval"``, or ``"train"`` with dropout and the statistics of the batch.

    Raises:
        OptionError: if an option makes no sense, or ``speedup`` is less than the forward passes take.
        SelectionError: if the profile is of another model.

    Departs from the paper: the head always trains and its time is taken off first; ``head_as_candidate=True`` makes it
    compete as there. The solver is exact; the paper's keeps to the limit too but misses the best set at times. The
    probe runs in eval mode, as batch-norms do in training here, and leaves the optimizer's state and the batch-norms'
    statistics as they were, which the paper's code does not. Profiles are made on autograd's graph, not by TensorFlow's
    profiler, and what only one tensor needs of a backward pass counts as that tensor's own time (`profile_backward`).

    Source: Huang et al., ElasticTrainer, MobiSys 2023, and its public code.
    """
    options = {
        "speedup": speedup,
        "interval": interval,
        "profile": profile if profile in PROFILES else "given",
        "importance": importance,
        "solver": solver,
        "quanta": quanta,
        "disco": disco,
        "profile_samples": profile_samples,
        "mode": mode,
    }
    _check(options)
    return ElasticTrainer(request, options, _given(profile))


def _check(options: Mapping[str, Any]) -> None:
    """Refuse options that make no sense before anything is measured."""
    for name, known in (("importance", IMPORTANCE), ("solver", SOLVERS), ("mode", MODES)):
        if options[name] not in known:
            raise OptionError(f"expected {name} to be one of {', '.join(known)}, got {options[name]!r}")
    for name in ("interval", "quanta", "profile_samples"):
        if options[name] < 1:
            raise OptionError(f"expected {name} of at least 1, got {options[name]}")
    speedup = options["speedup"]
    if not 0 < speedup <= 1:
        raise OptionError(
            f"expected speedup, the wanted time over that of training everything, above 0 and up to 1, got {speedup}"
        )
    if options["profile"] == "macs":
        backward_ratio(speedup)


class ElasticTrainer(Dynamic):
    """The method at work in a run.

    Args:
        request: the method's.
        options: of `elastic_trainer`, checked.
        profile: to use, or None to make it at the first turn.
    """

    def __init__(self, request: Request, options: Mapping[str, Any], profile: Profile | None) -> None:
        self.profile = profile
        self._request, self._options = request, options
        self._layers = request.find_layers()
        self._chosen: tuple[str, ...] = ()

    def due(self, moment: Moment) -> bool:
        """At the start of every interval."""
        return moment.starts_epoch and (moment.epoch - 1) % self._options["interval"] == 0

    def turn(self, moment: Moment) -> Turn:
        """Probe with the first batch and solve."""
        batch = next(iter(self._request.batches))
        if self.profile is None:
            self.profile = self._make_profile(batch)
        profile, options = self.profile, self._options
        self._check_names(profile)
        found = find_importance(
            self._request.model,
            batch,
            moment.optimizer,
            kind=options["importance"],
            mode=options["mode"],
            loss=self._request.loss,
            micro_batch=self._request.micro_batch,
            seed=self._request.seed + moment.epoch,
        )
        names, head = profile.names, set(self._layers.head_parameters)
        always = [index for index, name in enumerate(names) if name in head]
        chosen = choose(
            [found[name] for name in names],
            profile.t_dw,
            profile.t_dy,
            backward_ratio(options["speedup"], profile.forward, profile.backward),
            always=always,
            quanta=options["quanta"],
            disco=options["disco"],
            solver=options["solver"],
        )
        self._chosen = tuple(names[index] for index in chosen) or self._fall_back(always)
        trained = [index for index, name in enumerate(names) if name in head or name in self._chosen]
        share = time_of(trained, profile.t_dw, profile.t_dy) / profile.total
        selection = choose_tensors(
            self._request, self._layers, self._chosen, method="elastic-trainer", options=dict(options)
        )
        note = f"{len(trained)} of {len(names)} tensors, {share:.0%} of the whole backward pass"
        return Turn(selection, note=note)

    def state_dict(self) -> dict[str, Any]:
        """The profile, so that a resumed run selects by the same times, and what trains."""
        return {"profile": "" if self.profile is None else self.profile.to_json(), "chosen": list(self._chosen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        try:
            self.profile = Profile.from_json(state["profile"]) if state["profile"] else None
            self._chosen = tuple(state["chosen"])
        except KeyError as error:
            raise CheckpointError(f"the checkpoint is of another method, it lacks {error}") from error

    def _make_profile(self, batch: Any) -> Profile:
        return profile_backward(
            self._request.model,
            batch,
            unit=PROFILES[self._options["profile"]],
            loss=self._request.loss,
            samples=self._options["profile_samples"],
            train=self._options["mode"] == "train",
        )

    def _check_names(self, profile: Profile) -> None:
        known = {name for name, _ in self._request.model.named_parameters()}
        foreign = next((name for name in profile.names if name not in known), None)
        if foreign is not None or not profile.names:
            raise SelectionError(
                f"this profile was made for another model: it times {foreign!r}, which "
                f"{type(self._request.model).__name__} does not have; make one by profile_backward"
            )

    def _fall_back(self, always: list[int]) -> tuple[str, ...]:
        """What goes on training where nothing is worth its time: the head alone, or what has trained so far."""
        if not always and not self._chosen:
            raise OptionError(
                "expected room for a tensor that lowers the loss, there is none within "
                f"speedup={self._options['speedup']}; raise it, or leave out head_as_candidate"
            )
        return () if always else self._chosen


def _given(profile: str | os.PathLike[str] | Profile) -> Profile | None:
    """The profile that an option brings, or None where one is to be made."""
    if isinstance(profile, Profile):
        return profile
    if profile in PROFILES:
        return None
    try:
        text = Path(profile).read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(
            f"expected profile to be one of {', '.join(PROFILES)}, a Profile or a file with one, got {str(profile)!r}: "
            f"{error.strerror}"
        ) from error
    return Profile.from_json(text)
