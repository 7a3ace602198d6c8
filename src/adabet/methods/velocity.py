"""Velocity: neurons whose outputs change at a changing rate, within a budget of parameters."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adabet.errors import ActivationError, DataError, LayerError, OptionError
from adabet.layers import Layer, inputs_of, join_samples, sample_count, take_samples
from adabet.layers.batches import device_of, tensors_of
from adabet.layers.observe import observing
from adabet.methods.channel_budget import ChannelBudget
from adabet.methods.channel_draws import ChannelPool, check_fill, generator_for, weighted_order
from adabet.methods.channel_gradients import Channels
from adabet.methods.drawn_channels import TRAIN_BN, norms_of
from adabet.methods.dynamic import Dynamic, Moment, Turn
from adabet.methods.registry import Request, register
from adabet.methods.step_bytes import StepBytes
from adabet.methods.tensors import choose_tensors
from adabet.methods.units import ChannelCost
from adabet.selection import Selection


@register(
    "velocity",
    needs="forward passes over a few held-out samples before every epoch; labels if there is a budget of bytes",
    source="Quelennec et al., WACV 2024, after Bragagnolo et al., NEq",
    budget=True,
)
def start_velocity(
    request: Request,
    *,
    parameters: float | None = None,
    mu: float = 0.5,
    samples: int = 32,
    values: int | None = 128,
    fill: str = "prefix",
    train_bn: str = "frozen",
) -> Dynamic:
    """Neurons whose outputs have not come to rest, for their number of parameters; chosen anew every epoch.

    A neuron is an output channel of a convolution or linear layer. Before every epoch a forward pass over the same
    samples takes its output y; ``phi_t = cos(y_t, y_(t-1))`` says how little it has changed in an epoch,
    ``v_t = (phi_t - phi_(t-1)) - mu v_(t-1)`` is its velocity. The neurons with the largest ``|v| / C_w``, for C_w
    parameters, train until the budget is met. The first epoch's are drawn with equal chances.

    Between epochs it remembers two numbers a neuron, ``values`` numbers of the last output of each, and, where there
    are no held-out batches, the inputs of the samples; all of that is in a run's checkpoint. A network with 17000
    neurons remembers 9 MB of outputs at the default.

    Args:
        request: model and batches; of ``val_batches`` the first samples are looked at, which have to come in the same
            order every time, else samples of the training batches are kept. Its ``memory`` is a budget of bytes for
            the measured peak of a training step in the lean mode, everything counted, also what is remembered; early
            layers that it does not pay for are left out.
        parameters: the paper's budget: a number of parameters, or if 1 or less their share of those of all neurons;
            it may be left out where there is ``memory``. Where TraDy is compared with it, it gets the weights alone of
            the scheme that the memory units come from.
        mu: how much of the last velocity is taken away.
        samples: how many to look at.
        values: numbers of a neuron's output that are compared, at places drawn once, evenly over the samples; None
            compares whole outputs.
        fill: ``"prefix"`` stops at the first neuron that does not fit, ``"skip_and_continue"`` goes on.
        train_bn: ``"frozen"``, or ``"affine"``: scale and shift of all norms train as well, outside the budget, as in
            the authors' code.

    Raises:
        OptionError: if there is no budget, or an option makes no sense.
        BudgetError: if the bytes don't pay for a single neuron.
        LayerError: if the model has no neurons beside its head.
        DataError: if there is no batch, or the held-out samples are others than in the epoch before.

    Departs from the paper: outputs are compared at some places instead of all; phi_0 is 1, as if the network had rested
    before the run, which the paper does not say. A neuron whose output is zero both times has rested. The head
    always trains and costs nothing.

    Source: Quelennec et al., Towards On-device Learning on the Edge: Ways to Select Neurons to Update under a Budget
    Constraint, WACV 2024.
    """
    if parameters is None and request.memory is None:
        raise OptionError(
            "method 'velocity' trains neurons until a budget is met: give parameters= (a number of parameters such as "
            "192311, or a share of them up to 1) or memory= (bytes of a training step, such as 200_000_000), or both"
        )
    if parameters is not None and (not parameters > 0 or (parameters > 1 and parameters != int(parameters))):
        raise OptionError(f"expected parameters, a number of them or a share up to 1, got {parameters}")
    if samples < 1 or (values is not None and values < 1):
        raise OptionError(f"expected samples and values of at least 1, got {samples} and {values}")
    if not 0 <= mu <= 1:
        raise OptionError(f"expected mu from 0 to 1, got {mu}")
    if train_bn not in TRAIN_BN:
        raise OptionError(f"expected train_bn to be one of {', '.join(TRAIN_BN)}; got {train_bn!r}")
    check_fill(fill)
    return Velocity(request, parameters, mu, samples, values, fill, train_bn)


class Velocity(Dynamic):
    """Chooses neurons by their velocity; see `start_velocity`."""

    def __init__(
        self,
        request: Request,
        parameters: float | None,
        mu: float,
        samples: int,
        values: int | None,
        fill: str,
        train_bn: str,
    ) -> None:
        self._request, self._mu, self._fill, self._train_bn = request, mu, fill, train_bn
        self._samples, self._values = samples, values
        self._layers = request.find_layers()
        self._neurons = {layer.name: layer for layer in self._layers if _has_neurons(request.model, layer)}
        self.pool = ChannelPool({name: _cost(request.model, layer) for name, layer in self._neurons.items()})
        if not self.pool.names:
            raise LayerError("expected convolutions or linear layers beside the head, the model has none")
        self.budget = self._parameters(1.0 if parameters is None else parameters)
        self._bytes: StepBytes | None = None
        self._outputs: dict[str, Tensor] = {}
        self._phi = torch.ones(self.pool.size, dtype=torch.float64)
        self.velocity = torch.zeros(self.pool.size, dtype=torch.float64)
        self._inputs: Any = None
        self._digest = ""

    def due(self, moment: Moment) -> bool:
        """At the start of every epoch."""
        return moment.starts_epoch

    def turn(self, moment: Moment) -> Turn:
        """Look at the outputs and choose."""
        outputs = self._look()
        if self._outputs:
            phi = torch.cat([similarity(outputs[name], self._outputs[name]) for name in self.pool.names])
            self.velocity = phi - self._phi - self._mu * self.velocity
            self._phi = phi
            order = (self.velocity.abs() / self.pool.spaces).argsort(descending=True, stable=True)
        else:
            order = weighted_order(torch.ones(self.pool.size), generator_for(self._request.seed, moment.epoch))
        self._outputs = outputs
        step = self._step_bytes()
        # neurons that alone are above the budget would end the draw
        order = order[self.pool.spaces[order] <= self.budget]
        if step is not None:
            paid = step.affordable().costs
            order = order[torch.tensor([name in paid for name in self.pool.names])[self.pool.owners[order]]]
        chosen = self.pool.split(ChannelBudget(self.pool, self.budget, step, self._fill).take(order).tolist())
        spent = sum(len(part) * self.pool.costs[name].weight for name, part in chosen.items())
        count = sum(map(len, chosen.values()))
        note = f"{count} of {self.pool.size} neurons with {spent} parameters"
        return Turn(self.selection(chosen), note=note)

    def selection(self, neurons: Channels) -> Selection:
        """Neurons by layer as a selection, with the norms if these train."""
        names = {name for layer in neurons for name in _own(self._neurons[layer])}
        if self._train_bn == "affine":
            names |= norms_of(self._layers)
        options = {
            "parameters": self.budget,
            "memory": self._request.memory,
            "mu": self._mu,
            "train_bn": self._train_bn,
            "seed": self._request.seed,
        }
        return choose_tensors(
            self._request, self._layers, names, method="velocity", channels=neurons, axis="out", options=options
        )

    def _parameters(self, budget: float) -> int:
        """The budget as a number of parameters.

        Raises:
            OptionError: if it does not pay for a single neuron.
        """
        total, least = int(self.pool.spaces.sum()), int(self.pool.spaces.min())
        count = int(budget * total) if budget <= 1 else int(budget)
        if count < least:
            raise OptionError(f"expected parameters that pay for at least one neuron, {least} of {total}; got {budget}")
        return count

    def _step_bytes(self) -> StepBytes | None:
        """What steps take of the bytes that are left beside what is remembered; None where there is no such budget."""
        request = self._request
        if request.memory is None:
            return None
        if self._bytes is None:
            remembered = [self._phi, self.velocity, *self._outputs.values(), *tensors_of(self._inputs)]
            device = device_of(request.model).type  # on a GPU what is remembered lies elsewhere
            reserved = sum(tensor.nbytes for tensor in remembered if tensor.device.type == device)
            self._bytes = StepBytes(request, self._layers, self.pool, self.selection, axis="out", reserved=reserved)
        return self._bytes

    def state_dict(self) -> dict[str, Any]:
        """Velocities, similarities, what is remembered of the outputs, and the samples if they are not held out."""
        state: dict[str, Any] = {"velocity": self.velocity, "phi": self._phi, "outputs": dict(self._outputs)}
        state["samples"] = self._digest
        return state if self._inputs is None else {**state, "inputs": self._inputs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.velocity, self._phi = state["velocity"].double().cpu(), state["phi"].double().cpu()
        self._outputs = dict(state["outputs"])
        self._inputs, self._digest = state.get("inputs"), state["samples"]

    def _look(self) -> dict[str, Tensor]:
        """For each layer, what is remembered of its neurons' outputs: ``(neurons, values)``."""
        found: dict[str, list[Tensor]] = {name: [] for name in self._neurons}
        model, seen, digest = self._request.model, 0, hashlib.sha256()

        def take(layer: Layer, start: int, _: nn.Module, __: Any, output: Tensor) -> None:
            if len(found[layer.name]) <= start:
                found[layer.name].append(self._places(layer, output, start))

        with observing(model) as handles:
            for start, sample in enumerate(self._each_sample()):
                hooks = [
                    model.get_submodule(name).register_forward_hook(partial(take, layer, start))
                    for name, layer in self._neurons.items()
                ]
                handles += hooks
                self._request.forward(model, sample)
                for hook in hooks:
                    hook.remove()
                seen += 1
                for tensor in tensors_of(sample):
                    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        if not seen:
            raise DataError("expected samples to look at, the loader is empty")
        if self._digest not in ("", digest.hexdigest()):
            raise DataError("expected the same held-out samples in every epoch, got others; do not shuffle val_loader")
        self._digest = digest.hexdigest()
        return {name: torch.cat(parts, 1) for name, parts in found.items()}

    def _places(self, layer: Layer, output: Tensor, start: int) -> Tensor:
        """A sample's part of what is remembered: some places, the same every time."""
        axis = layer.channel_axis if layer.channel_axis is not None else -1
        rows = output.detach().movedim(axis, 0).flatten(1)
        if not rows.isfinite().all():
            raise ActivationError(f"expected finite outputs, those of {layer.name!r} are not; lower lr")
        if self._values is not None:
            count = min(rows.shape[1], -(-self._values // self._samples))
            generator = generator_for(
                self._request.seed, start * len(self.pool.names) + self.pool.names.index(layer.name)
            )
            rows = rows[:, torch.randperm(rows.shape[1], generator=generator)[:count].to(rows.device)]
        return rows.float().cpu()

    def _each_sample(self) -> Iterable[Any]:
        """The samples, one at a time: then no sample's outputs depend on how batches were made."""
        batches = self._request.val_batches
        if batches is None:
            if self._inputs is None:
                self._inputs = join_samples(list(_first_samples(self._request.batches, self._samples)))
            batches = [self._inputs]
        return _first_samples(batches, self._samples)


def similarity(now: Tensor, before: Tensor) -> Tensor:
    """Cosine similarity of the neurons' outputs; 1 where both are zero.

    Args:
        now: ``(neurons, values)``.
        before: the same.

    Returns:
        ``(neurons,)``, float64.

    Examples:
        >>> before = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
        >>> similarity(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]), before)
        tensor([1., 1., 0.], dtype=torch.float64)
    """
    now, before = now.double(), before.double()
    lengths = now.norm(dim=1) * before.norm(dim=1)
    at_rest = (now == before).all(1)
    return torch.where(at_rest, 1.0, (now * before).sum(1) / lengths.where(lengths > 0, 1.0))


def _first_samples(batches: Iterable[Any], count: int) -> Iterable[Any]:
    """Inputs of the first so many samples, one by one."""
    for batch in batches:
        inputs = inputs_of(batch)
        for index in range(min(count, sample_count(inputs))):
            yield take_samples(inputs, index, index + 1)
        count -= sample_count(inputs)
        if count <= 0:
            return


def _has_neurons(model: nn.Module, layer: Layer) -> bool:
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return isinstance(model.get_submodule(layer.name), kinds) and f"{layer.name}.weight" in layer.parameters


def _own(layer: Layer) -> tuple[str, ...]:
    """Names of a layer's weight and bias, without a norm that may be tied to it."""
    return tuple(name for name in layer.parameters if name.startswith(f"{layer.name}."))


def _cost(model: nn.Module, layer: Layer) -> ChannelCost:
    """A neuron's parameters; it has no activations to keep that other neurons of its layer would not need."""
    channels = layer.out_channels or 1
    count = sum(model.get_parameter(name).numel() for name in _own(layer))
    return ChannelCost(channels, count // channels, 0, layer.macs // channels)
