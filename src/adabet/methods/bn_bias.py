"""Only scales, shifts and biases: what trains without keeping the inputs of a weight."""

from collections.abc import Callable

from torch import nn

from adabet.errors import LayerError
from adabet.layers.structure import kind_of
from adabet.methods.registry import Request, register
from adabet.methods.tensors import choose_tensors
from adabet.selection import Selection


@register("bn-bias", needs="nothing", source="baseline of ElasticTrainer, Huang et al., MobiSys 2023")
def select_bn_bias(request: Request) -> Selection:
    """Scales and shifts of all norms, all biases, and the head.

    A scale needs its norm's input for the backward pass; `select_tinytl_bias` leaves scales out. All biases are those
    of every layer, of attention's projections and recurrent layers too. The ratios of a request do not apply.

    Raises:
        LayerError: if the model has no norm, no bias and no head.
        DataError: if there is no batch to find the layers with.

    Departs from the reference code, which goes by names that contain gamma, beta or bias: here a norm is known by its
    kind, so that a LayerScale's gamma stays frozen. Running statistics stay as they are, see `adabet.apply`.

    Source: Huang et al., ElasticTrainer (MobiSys 2023), reference code, ``bn_plus_bias_training``.
    """
    return _choose(request, "bn-bias", lambda module, name: kind_of(module) == "norm" or is_bias(module, name))


@register("tinytl-bias", needs="nothing", source="Cai et al., TinyTL, NeurIPS 2020, arXiv 2007.11622")
def select_tinytl_bias(request: Request) -> Selection:
    """All biases, those of norms included, and the head.

    The gradient of a bias needs no input of its layer, so under `adabet.lean` nothing is kept for the layers but
    what activation functions need, one bit an element for a ReLU. The ratios of a request do not apply.

    Raises:
        LayerError: if the model has no bias and no head.
        DataError: if there is no batch to find the layers with.

    Departs from the paper: its networks are built with group-norm and weight standardisation; here the model is the
    user's, and its batch-norms keep their statistics.

    Source: Cai et al., TinyTL (NeurIPS 2020, arXiv 2007.11622), TinyTL-B, and its code, ``enable_bias_update``.
    """
    return _choose(request, "tinytl-bias", is_bias)


def is_bias(module: nn.Module, name: str) -> bool:
    """Whether a module's own parameter is a vector of biases, going by its name.

    Examples:
        >>> attention = nn.MultiheadAttention(4, 2)
        >>> [name for name, _ in attention.named_parameters(recurse=False) if is_bias(attention, name)]
        ['in_proj_bias']
        >>> [name for name, _ in nn.GRU(3, 2).named_parameters() if is_bias(nn.GRU(3, 2), name)]
        ['bias_ih_l0', 'bias_hh_l0']
    """
    # attention's table of biases by position, and its extra keys and values bias_k and bias_v, have more axes
    vector = module.get_parameter(name).dim() == 1
    return vector and (name == "bias" or name.startswith("bias_") or name.endswith("_bias"))


def _choose(request: Request, method: str, wanted: Callable[[nn.Module, str], bool]) -> Selection:
    layers = request.find_layers()
    names = set()
    for full_name in (name for layer in layers for name in layer.parameters):
        owner, _, name = full_name.rpartition(".")
        if wanted(request.model.get_submodule(owner), name):
            names.add(full_name)
    if not names and not layers.head:
        raise LayerError(f"expected norms, biases or a head for {method!r} to train, the model has none")
    return choose_tensors(request, layers, names, method=method)
