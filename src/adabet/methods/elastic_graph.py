"""A backward pass walked node by node, each piece charged to the tensor that it is needed for."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node

Gradients = Sequence[Tensor | None]

Meter = Callable[[Callable[[], Gradients], Gradients], tuple[float, Gradients]]
"""Runs a piece of a backward pass and says what it took: ``meter(piece, incoming gradients)``."""

SEVERAL = ""
"""Stands for more than one tensor; no parameter has an empty name."""


@dataclass(frozen=True)
class Piece:
    """Some of what one node computes.

    Attributes:
        edges: where the gradients go.
        tensor: full name of the tensor that it is charged to.
        own: whether it is needed for that tensor's gradient alone, or to get to it and beyond.
    """

    edges: tuple[GradientEdge, ...]
    tensor: str
    own: bool


def walk(
    loss: Tensor, parameters: Mapping[str, Tensor], fused: Collection[str], meter: Meter
) -> dict[str, tuple[float, float]]:
    """Own time and passing time of every tensor that a loss depends on.

    Args:
        loss: a scalar; its graph is kept.
        parameters: the leaves, by full name.
        fused: names of tensors whose node is charged as a whole to the passing time of the last of them, since one
            kernel does it all, as for a norm.
        meter: says what each piece took.

    Returns:
        ``(t_dw, t_dy)`` by name, in the order in which the forward pass used the tensors.
    """
    graph = Graph(loss, parameters)
    own, passing = dict.fromkeys(graph.order, 0.0), dict.fromkeys(graph.order, 0.0)
    overhead = _overhead(meter, loss.device)
    incoming: dict[Node, dict[int, Tensor]] = {graph.nodes[0]: {loss.output_nr: torch.ones_like(loss)}}
    for node in graph.nodes:
        given = incoming.pop(node, {})
        if not given:
            continue
        pieces = graph.pieces(node, fused)
        apart = len(pieces) > 1 and graph.separable(node, pieces)
        measured = _apart(node, given, pieces, meter, overhead) if apart else _whole(node, given, pieces, meter)
        for piece, taken, gradients in measured:
            account = own if piece.own else passing
            account[piece.tensor] += taken
            for edge, gradient in zip(piece.edges, gradients, strict=True):
                if gradient is not None and edge.node not in graph.leaves:
                    account[piece.tensor] += _hand_on(edge, gradient, incoming, meter)
    return {name: (own[name], passing[name]) for name in graph.order}


class Graph:
    """What autograd recorded of a forward pass, and which tensors each of its nodes leads to.

    Attributes:
        nodes: every node, each before those that it passes gradients to.
        leaves: the names of the parameters' nodes.
        order: names of the parameters that take part, in the order of their first use.
    """

    def __init__(self, loss: Tensor, parameters: Mapping[str, Tensor]) -> None:
        names = {id(parameter): name for name, parameter in parameters.items()}
        self.nodes = _sorted_nodes(loss)
        self.leaves = {node: names[id(leaf)] for node in self.nodes if id(leaf := _leaf(node)) in names}
        self._sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        self._reach: dict[Node, str | None] = {}
        for node in reversed(self.nodes):
            self._reach[node] = self.leaves.get(node, self._common(node))
        self._users = Counter(edge.node for node in self.nodes for edge in self._edges(node))
        first: dict[str, int] = {}
        for node in self.nodes:
            for edge in self._edges(node):
                if edge.node in self.leaves:
                    name = self.leaves[edge.node]
                    first[name] = min(first.get(name, node._sequence_nr()), node._sequence_nr())
        # sorting keeps what one node uses in the order of definition
        self.order = sorted((name for name in parameters if name in first), key=first.__getitem__)
        self._first_uses = [first[name] for name in self.order]
        self._place = {name: place for place, name in enumerate(self.order)}

    def pieces(self, node: Node, fused: Collection[str]) -> list[Piece]:
        """What a node computes, by the tensors that need it: the larger tensors first, what is passed on last."""
        edges = self._edges(node)
        at_once = [name for edge in edges if (name := self.leaves.get(edge.node)) in fused and name]
        if at_once:
            return [Piece(edges, max(at_once, key=self._place.__getitem__), own=False)]
        groups: dict[str, list[GradientEdge]] = {}
        for edge in edges:
            groups.setdefault(self._reach[edge.node] or SEVERAL, []).append(edge)
        passed = groups.pop(SEVERAL, [])
        names = sorted(groups, key=lambda name: -self._sizes[name])
        pieces = [Piece(tuple(groups[name]), name, own=True) for name in names]
        return [*pieces, Piece(tuple(passed), self._passed(node, names), own=False)] if passed else pieces

    def separable(self, node: Node, pieces: Sequence[Piece]) -> bool:
        """Whether autograd can compute any piece of a node alone, without going on to other nodes.

        It goes on where one of the edges leads to another. A function written in Python computes everything at once.
        """
        single = all(self._users[edge.node] == 1 for piece in pieces if piece.own for edge in piece.edges)
        return single and len(pieces[-1].edges) == 1 and not isinstance(node, BackwardCFunction)

    def _passed(self, node: Node, here: Sequence[str]) -> str:
        """The tensor whose passing time a node belongs to: the one used last by then, or that one's module's first."""
        last = self.order[max(0, bisect_right(self._first_uses, node._sequence_nr()) - 1)]
        owner = last.rpartition(".")[0]
        same = [name for name in here if name.rpartition(".")[0] == owner]
        return min(same, key=self._place.__getitem__, default=last)

    def _common(self, node: Node) -> str | None:
        """The tensor that a node leads to, `SEVERAL`, or None if it leads to none."""
        found = {self._reach[after] for after, _ in node.next_functions if after is not None} - {None}
        return SEVERAL if len(found) > 1 else next(iter(found), None)

    def _edges(self, node: Node) -> tuple[GradientEdge, ...]:
        """Where a node's gradients go, each place once, without those that lead to no parameter."""
        places = dict.fromkeys((after, number) for after, number in node.next_functions if after is not None)
        return tuple(GradientEdge(after, number) for after, number in places if self._reach[after] is not None)


Measured = Iterator[tuple[Piece, float, Gradients]]


def _apart(node: Node, given: Mapping[int, Tensor], pieces: Sequence[Piece], meter: Meter, overhead: float) -> Measured:
    """Each piece alone, by autograd's own engine, which computes no more than what is asked for."""
    outputs, gradients = [GradientEdge(node, number) for number in given], list(given.values())
    together: tuple[GradientEdge, ...] = ()
    before = 0.0
    for piece in pieces:
        # a bias's gradient often falls out of the weight's: it is charged what it takes on top of that
        edges = (*together, *piece.edges) if piece.own else piece.edges
        taken, found = meter(_engine(outputs, edges, gradients), gradients)
        taken = max(0.0, taken - overhead)
        yield piece, max(0.0, taken - before) if piece.own else taken, found[len(edges) - len(piece.edges) :]
        if piece.own:
            together, before = edges, taken


def _engine(
    outputs: Sequence[GradientEdge], edges: Sequence[GradientEdge], gradients: Sequence[Tensor]
) -> Callable[[], Gradients]:
    return lambda: torch.autograd.grad(outputs, edges, gradients, retain_graph=True, allow_unused=True)


def _overhead(meter: Meter, device: torch.device) -> float:
    """What the engine takes to compute nothing."""
    leaf = torch.ones(1, device=device, requires_grad=True)
    view = leaf.view(1)
    gradient = torch.ones_like(view)
    return meter(lambda: torch.autograd.grad(view, leaf, gradient, retain_graph=True), [gradient])[0]


def _whole(node: Node, given: Mapping[int, Tensor], pieces: Sequence[Piece], meter: Meter) -> Measured:
    """All pieces at once by calling the node, in equal shares."""
    slots = {(after, number): None for after, number in node.next_functions if after is not None}
    edges = [GradientEdge(after, number) for after, number in slots]
    taken, found = meter(lambda: _call(node, given, edges), list(given.values()))
    gradients = {(edge.node, edge.output_nr): gradient for edge, gradient in zip(edges, found, strict=True)}
    for piece in pieces:
        yield piece, taken / len(pieces), [gradients[edge.node, edge.output_nr] for edge in piece.edges]


@torch.no_grad()
def _call(node: Node, given: Mapping[int, Tensor], edges: Sequence[GradientEdge]) -> Gradients:
    """A node's gradients for the places that they go to, summed where a place comes twice."""
    found: dict[tuple[Node, int], Tensor] = {}
    for (after, number), gradient in _results(node, given):
        if after is not None and gradient is not None:
            # nodes leave it to the engine to sum over what was broadcast
            shape = tuple(_metadata(after)[number].shape)
            summed = gradient if tuple(gradient.shape) == shape else gradient.sum_to_size(shape)
            found[after, number] = found[after, number] + summed if (after, number) in found else summed
    return [found.get((edge.node, edge.output_nr)) for edge in edges]


def _results(node: Any, given: Mapping[int, Tensor]) -> Iterator[tuple[tuple[Node | None, int], Tensor | None]]:
    """What a node computes, with the places that it goes to."""
    if not isinstance(node, BackwardCFunction):
        results = node(*(given.get(number) for number in range(len(_metadata(node)))))
        return zip(node.next_functions, results if isinstance(results, tuple) else (results,), strict=True)
    # a function written in Python wants all gradients, and answers for what is no tensor too
    gradients = [
        given[number] if number in given else torch.zeros(tuple(item.shape), dtype=item.dtype, device=item.device)
        for number, item in enumerate(_metadata(node))
    ]
    results = node.apply(*gradients)
    results = results if isinstance(results, tuple) else (results,)
    needed = (result for result, need in zip(results, node.needs_input_grad, strict=False) if need)
    return zip((slot for slot in node.next_functions if slot[0] is not None), needed, strict=True)


def _metadata(node: Any) -> Sequence[Any]:
    """Shape, type and device of what a node takes gradients of."""
    return cast(Sequence[Any], node._input_metadata)


def _hand_on(edge: GradientEdge, gradient: Tensor, incoming: dict[Node, dict[int, Tensor]], meter: Meter) -> float:
    """Add a gradient to what has come in at the node that it is for; gives what the sum takes, if there is one."""
    there = incoming.setdefault(edge.node, {})
    before = there.get(edge.output_nr)
    if before is None:
        there[edge.output_nr] = gradient
        return 0.0
    taken, (total,) = meter(lambda: (before + gradient,), (before, gradient))
    there[edge.output_nr] = gradient if total is None else total
    return taken


def _sorted_nodes(loss: Tensor) -> list[Node]:
    """All nodes behind a tensor, each before those that it passes gradients to."""
    if loss.grad_fn is None:
        return []
    finished: list[Node] = []
    seen = {loss.grad_fn}
    stack = [(loss.grad_fn, iter(loss.grad_fn.next_functions))]
    while stack:
        node, rest = stack[-1]
        after = next((after for after, _ in rest if after is not None and after not in seen), None)
        if after is None:
            finished.append(node)
            stack.pop()
        else:
            seen.add(after)
            stack.append((after, iter(after.next_functions)))
    return finished[::-1]


def _leaf(node: Node) -> Tensor | None:
    """The tensor whose gradient a node would add to, if it is such a node."""
    variable = None if node.next_functions else getattr(node, "variable", None)
    return variable if isinstance(variable, Tensor) else None
