"""The best Sparse Update scheme within a number of bytes, by evolution over a table of contributions."""

from dataclasses import dataclass

import numpy as np

from adabet.errors import BudgetError, OptionError
from adabet.methods.sparse_contributions import Contributions
from adabet.methods.sparse_scheme import Scheme, Sites

Genes = np.ndarray
"""Rows of whole numbers: which depth of biases, then for each layer which of its ratios, 0 for no weights."""


@dataclass(frozen=True)
class Evolution:
    """How schemes are searched; the defaults look at some 5,000 of them, where the paper's search has converged.

    Attributes:
        population: schemes alive at once.
        generations: how often the better half has offspring.
        mutation: chance that a part of a scheme is drawn anew in a child.
        seed: of every draw.

    Raises:
        OptionError: if one makes no sense.
    """

    population: int = 100
    generations: int = 100
    mutation: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.population < 4:
            raise OptionError(f"expected a population of at least 4, got {self.population}")
        if self.generations < 0:
            raise OptionError(f"expected generations of at least 0, got {self.generations}")
        if not 0 <= self.mutation <= 1:
            raise OptionError(f"expected a mutation rate from 0 to 1, got {self.mutation}")


def search_scheme(sites: Sites, contributions: Contributions, extra: int, evolution: Evolution | None = None) -> Scheme:
    """The scheme with the largest sum of contributions that takes no more than some bytes beyond inference.

    Maximises the gain of the last k biases plus the gains of each layer's weights at its ratio, over k and the ratios
    that were measured; weights train only where the bias of their layer does. A scheme is judged by looking up its
    parts. The first generation holds, for each k, the scheme that grows by the best gain a byte; children mix two
    parents of the better half, change a little, and lose random parts until they fit.

    Args:
        sites: the layers and what they take, see `Sites.extra_bytes`.
        contributions: of the same layers.
        extra: bytes.
        evolution: how to search; None for the defaults.

    Raises:
        BudgetError: if not even the head fits.

    Source: Lin et al. 2022 (arXiv 2206.15472), contribution analysis and evolutionary search.
    """
    evolution = evolution or Evolution()
    budget = extra * 8
    if sites.least_bits > budget:
        raise BudgetError(
            f"expected extra of at least {sites.extra_bytes(Scheme(0))} bytes, what the head's input takes; got {extra}"
        )
    table = _Table(sites, contributions, budget)
    draw = np.random.default_rng(evolution.seed)
    alive = np.array([table.grown(depth) for depth in range(table.deepest + 1)], dtype=np.int64)
    drawn = table.draw(draw, max(0, evolution.population - len(alive)))
    alive = _best(table, np.concatenate([alive, table.repaired(draw, drawn)]), evolution.population)
    for _ in range(evolution.generations):
        parents = alive[: max(2, len(alive) // 2)]
        children = table.repaired(draw, _children(table, draw, parents, evolution))
        alive = _best(table, np.concatenate([alive, children]), evolution.population)
    return table.scheme(alive[0])


class _Table:
    """Gains and costs of the parts of schemes.

    A layer's parts are its ratios, 0 first; where a layer has fewer than others, the rest cost more than there is.
    """

    def __init__(self, sites: Sites, contributions: Contributions, budget: int) -> None:
        count = len(sites.items)
        self.budget = budget
        self.depths = [0, *sorted(contributions.biases)]
        self.depth_gains = np.array([0.0, *(contributions.biases[depth] for depth in self.depths[1:])])
        self.depth_costs = np.array(
            [sites.least_bits + sum(map(sites.bias_bits, range(count - depth, count))) for depth in self.depths]
        )
        measured = [contributions.weights.get(site.layer, {}) for site in sites.items]
        self.ratios = [[0.0, *sorted(gains)] for gains in measured]
        width = max(map(len, self.ratios), default=1)
        self.gains = np.zeros((count, width))
        self.costs = np.full((count, width), budget + 1, dtype=np.int64)
        for index, ratios in enumerate(self.ratios):
            self.gains[index, : len(ratios)] = [measured[index].get(ratio, 0.0) for ratio in ratios]
            self.costs[index, : len(ratios)] = [sites.weight_bits(index, ratio) for ratio in ratios]
        self.deepest = int(np.flatnonzero(self.depth_costs <= budget)[-1])
        self.layers = np.arange(count)
        self.sizes = np.array([len(ratios) for ratios in self.ratios])

    def gain(self, genes: Genes) -> np.ndarray:
        """Sum of the contributions of each row."""
        return np.asarray(self.depth_gains[genes[:, 0]] + self.gains[self.layers, genes[:, 1:]].sum(axis=1))

    def cost(self, genes: Genes) -> np.ndarray:
        """Bits of each row."""
        return np.asarray(self.depth_costs[genes[:, 0]] + self.costs[self.layers, genes[:, 1:]].sum(axis=1))

    def scheme(self, row: np.ndarray) -> Scheme:
        """A row as a scheme."""
        chosen = {index: self.ratios[index][part] for index, part in enumerate(row[1:]) if part}
        return Scheme(self.depths[row[0]], chosen)

    def draw(self, draw: np.random.Generator, count: int) -> Genes:
        """Rows at random, whatever they cost."""
        limits = np.concatenate([[len(self.depths)], self.sizes])
        return draw.integers(0, limits, size=(count, len(limits)))

    def grown(self, depth: int) -> np.ndarray:
        """Biases of a depth, and the weights that bring the most gain a bit, one after the other."""
        row = np.zeros(1 + len(self.layers), dtype=np.int64)
        row[0] = depth
        first = len(self.layers) - self.depths[depth]
        room = self.budget - self.depth_costs[depth]
        while True:
            now = self.layers, row[1:]
            more_gain = self.gains - self.gains[now][:, None]
            more_cost = self.costs - self.costs[now][:, None]
            worth = np.where((more_gain > 0) & (more_cost <= room), more_gain / np.maximum(more_cost, 1e-9), 0.0)
            worth[:first] = 0
            if not worth.any():
                return row
            layer, part = np.unravel_index(worth.argmax(), worth.shape)
            room -= more_cost[layer, part]
            row[1 + layer] = part

    def repaired(self, draw: np.random.Generator, genes: Genes) -> Genes:
        """Rows that fit: too deep biases go, then weights in front of them, then random weights until there is room."""
        genes = genes.copy()
        genes[:, 0] = np.minimum(genes[:, 0], self.deepest)
        firsts = len(self.layers) - np.array(self.depths)
        genes[:, 1:] *= self.layers >= firsts[genes[:, 0]][:, None]
        for index in np.flatnonzero(self.cost(genes) > self.budget):
            self._shrink(draw, genes[index])
        return genes

    def _shrink(self, draw: np.random.Generator, row: np.ndarray) -> None:
        """Lower the ratios of layers in random order, each no further than needed."""
        excess = int(self.cost(row[None])[0]) - self.budget
        for layer in draw.permutation(np.flatnonzero(row[1:])):
            costs = self.costs[layer, : row[1 + layer]]
            saved = self.costs[layer, row[1 + layer]] - costs
            enough = np.flatnonzero(saved >= excess)
            part = enough[-1] if len(enough) else 0
            excess -= int(saved[part])
            row[1 + layer] = part
            if excess <= 0:
                return


def _children(table: _Table, draw: np.random.Generator, parents: Genes, evolution: Evolution) -> Genes:
    """As many children as the population; each part is one of two parents', or new."""
    count = evolution.population
    first, second = (parents[draw.integers(0, len(parents), count)] for _ in range(2))
    mixed = np.where(draw.random(first.shape) < 0.5, first, second)
    return np.where(draw.random(mixed.shape) < evolution.mutation, table.draw(draw, count), mixed)


def _best(table: _Table, genes: Genes, count: int) -> Genes:
    """The best different rows, those that cost less first where gains are equal."""
    genes = np.unique(genes, axis=0)
    order = np.lexsort((table.cost(genes), -table.gain(genes)))
    return genes[order[:count]]
