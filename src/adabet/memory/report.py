"""What a step costs: the result of a measurement."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from adabet.errors import CheckpointError
from adabet.records import read_record, write_record
from adabet.sizes import format_size
from adabet.tables import table

KIND = "adabet/memory"

CATEGORIES = {
    "weights": "weights",
    "inputs": "inputs",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "saved": "saved activations",
    "workspace": "workspace",
}
"""Fields of a `Peak` and what they are called."""

LAYERS_SHOWN = 10


@dataclass(frozen=True)
class Peak:
    """Bytes at the moment when most is allocated.

    Attributes:
        weights: parameters and buffers of the whole model.
        inputs: the batch.
        gradients: in ``.grad`` of the parameters, or on their way there.
        optimizer: the optimizer's state.
        saved: activations that autograd keeps for the backward pass.
        workspace: everything else: outputs on their way, gradients of activations, scratch of kernels, and
            what a recomputed block keeps while it runs backward.
        resident: how far the process's resident memory rose meanwhile, or None; not part of the sum. More
            than what was allocated where the C library cannot give released memory back, less where the mark
            of the whole process's life is all that the system tells.
    """

    weights: int
    inputs: int
    gradients: int
    optimizer: int
    saved: int
    workspace: int
    resident: int | None = None

    @property
    def total(self) -> int:
        """All categories together."""
        return sum(getattr(self, name) for name in CATEGORIES)

    @property
    def over_weights(self) -> int:
        """What there is beside the weights and the batch: what a step allocates."""
        return self.total - self.weights - self.inputs


@dataclass(frozen=True)
class MemoryReport:
    """Memory of one real training step and of inference, as allocated.

    Attributes:
        model: its class.
        device: where it ran.
        batch_size: samples of the batch.
        micro_batch: samples in memory at once while training.
        lean: whether it ran in the lean mode.
        recompute: whether repeated blocks ran again in the backward pass.
        optimizer: its name.
        trainable: parameters that train.
        training: the peak over two training steps, the second with the optimizer's state from the first.
        inference: the peak of a forward pass over the whole batch without gradients, or None if not measured.
        saved: the most bytes of saved activations at any time.
        layers: who held them then: paths of modules and bytes, in the order of the forward pass. An
            activation that several modules save counts for the first. ``"(loss)"`` is what no module saved,
            ``"(recomputed)"`` what a rule of the lean mode saved anew during the backward pass.
    """

    model: str
    device: str
    batch_size: int
    micro_batch: int
    lean: bool
    recompute: bool
    optimizer: str
    trainable: int
    training: Peak
    inference: Peak | None
    saved: int
    layers: Mapping[str, int]

    @property
    def mode(self) -> str:
        """How it trained, in words."""
        return ("lean" if self.lean else "stock autograd") + (" and recomputing" if self.recompute else "")

    def to_json(self) -> str:
        """The report as JSON text."""
        return write_record(KIND, asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "MemoryReport":
        """A report from what `to_json` gave.

        Raises:
            CheckpointError: if the text is no memory report, or of another version.
        """
        values = read_record(KIND, text)
        try:
            peaks = {name: values[name] and Peak(**values[name]) for name in ("training", "inference")}
            return cls(**{**values, **peaks})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"this memory report lacks or misnames a field: {error}") from error

    def __str__(self) -> str:
        """The setting, the bytes by category, and the layers that hold most."""
        return "\n".join([self._setting(), "", self._categories(), "", self._holders()])

    def _setting(self) -> str:
        batch = f"batch {self.batch_size}"
        if self.micro_batch < self.batch_size:
            batch += f" in slices of {self.micro_batch}"
        what = f"{self.trainable:,} parameters train"
        return ", ".join([self.model, batch, self.device, self.mode, self.optimizer, what])

    def _categories(self) -> str:
        peaks = [peak for peak in (self.training, self.inference) if peak is not None]
        rows = [[title, *(format_size(getattr(peak, name)) for peak in peaks)] for name, title in CATEGORIES.items()]
        rows.append(["peak", *(format_size(peak.total) for peak in peaks)])
        resident = [format_size(peak.resident) for peak in peaks if peak.resident is not None]
        if len(resident) == len(peaks):
            rows.append(["resident memory rose by", *resident])
        return table(["at the peak of", "training", "inference"][: len(peaks) + 1], rows)

    def _holders(self) -> str:
        largest = sorted(self.layers.items(), key=lambda item: -item[1])
        shown, rest = largest[:LAYERS_SHOWN], largest[LAYERS_SHOWN:]
        if rest:
            shown.append((f"{len(rest)} more", sum(size for _, size in rest)))
        return table(
            ["kept for backward by", format_size(self.saved)],
            [[name, format_size(size)] for name, size in shown],
        )
