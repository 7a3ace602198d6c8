"""MeDyate: layers by LaRa and alpha, and chances by the norms that training has shown."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import adabet
from adabet.errors import OptionError, UnknownNameError
from adabet.freezing.trained import trained_parameters
from adabet.layers import find_layers
from adabet.memory import measure_memory
from adabet.methods import start
from adabet.methods.layer_choice import top_by_budget
from adabet.methods.units import channel_costs
from adabet.step import train_step
from tests.methods.drawing import CrashAt, channels_of, convolutions, labelled, moment, plain_norms
from tests.training.nets import make_loaders, make_net, same, weights_of
from tests.training.test_resume import Crash, without_seconds

LAYERS = ("0", "3", "6", "8", "12")
IMAGES = labelled(3, 12, 12)
EQUAL = dict.fromkeys(LAYERS, 1.0)
SOURCES = ("epoch_sum", "last_step", "mean_step_norm")
CHI_SQUARE_4 = 18.47  # 99.9 % quantile


def medyate(model=None, batches=IMAGES, **options):
    options.setdefault("head", "14")
    return start("medyate", convolutions() if model is None else model, batches, **options)


def draw(method, epoch):
    return channels_of(method.turn(moment(epoch)).selection)


def rows_for(channels, seed):
    """Made-up gradients of slices, of very different sizes, by parameter name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.weight": torch.randn(len(part), 4, 3, generator=generator)
        * 10 ** torch.rand(len(part), 1, 1, generator=generator).mul(3)
        for name, part in channels.items()
    }


class TestAlpha:
    def test_an_example_by_hand(self):
        # By LaRa the order is b, d, a, c. All their channels cost, added up, 100, 250, 500 and 900 units.
        # A budget of 100 is 1.0, 0.4, 0.2 and 0.11 of that; the first share of at most 0.2 is the third.
        values = {"a": 2.0, "b": 9.0, "c": 1.0, "d": 5.0}
        totals = {"a": 250, "b": 100, "c": 400, "d": 150}
        assert top_by_budget(values, totals, 100, 0.2) == ("b", "d", "a")
        assert top_by_budget(values, totals, 101, 0.2) == ("b", "d", "a", "c")
        assert top_by_budget(values, totals, 100, 0.4) == ("b", "d")
        # a budget that pays for more than a fifth of everything: all layers
        assert top_by_budget(values, totals, 181, 0.2) == ("b", "d", "a", "c")
        # the first layer alone is five times the budget
        assert top_by_budget(values, totals, 20, 0.2) == ("b",)

    @given(
        layers=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 100)), min_size=1, max_size=12),
        budget=st.integers(1, 300),
        alpha=st.floats(0.01, 1),
    )
    def test_is_the_smallest_k_of_the_definition(self, layers, budget, alpha):
        values = {str(index): value for index, (value, _) in enumerate(layers)}
        totals = {str(index): total for index, (_, total) in enumerate(layers)}
        order = sorted(values, key=lambda name: (-values[name], int(name)))
        shares = [budget / sum(totals[name] for name in order[:k]) for k in range(1, len(order) + 1)]
        found = top_by_budget(values, totals, budget, alpha)
        k = len(found)
        assert found == tuple(order[:k])
        assert all(share > alpha * (1 - 1e-9) for share in shares[: k - 1])
        assert k == len(order) or shares[k - 1] <= alpha * (1 + 1e-9)

    def test_decides_how_many_layers_are_drawn_from(self):
        model = convolutions()
        costs = channel_costs(model, find_layers(model, IMAGES[0], head="14"))
        ranking = {"12": 5.0, "8": 4.0, "6": 3.0, "3": 2.0, "0": 1.0}
        two = costs["12"].total + costs["8"].total
        pools = [medyate(units=units, ranking=ranking).pool.names for units in (two // 5, two // 5 + 1, 10**6)]
        assert pools == [("8", "12"), ("6", "8", "12"), LAYERS]

    def test_of_bytes(self):
        batches = labelled(3, 32, 32, samples=8)
        counts = [
            len(medyate(batches=batches, memory=640_000, ranking=EQUAL, alpha=alpha).pool.names)
            for alpha in (1.0, 0.2, 1e-9)
        ]
        assert counts == sorted(counts)
        assert counts[0] < counts[2] == 5


class TestNorms:
    @pytest.mark.parametrize("source", SOURCES)
    def test_follow_the_algorithm(self, source):
        """Against a dict that is kept by the letter of Algorithm 1."""
        method = medyate(units=700, ranking=EQUAL, norm_source=source)
        known: dict[tuple[str, int], float] = {}
        for epoch in range(1, 8):
            drawn = draw(method, epoch)
            state = method.state_dict()
            if epoch > 1:
                numbers = {key: float(state["norms"][method.pool.numbers(key[0], key[1:])]) for key in known}
                assert numbers == pytest.approx(known)
            steps = [rows_for(drawn, 10 * epoch + step) for step in range(3)]
            for step, rows in enumerate(steps, start=1):
                method.watch(moment(epoch, step), rows)
            shown = {}
            for name, channels in drawn.items():
                for row, channel in enumerate(channels):
                    rows = torch.stack([found[f"{name}.weight"][row] for found in steps]).double()
                    shown[name, channel] = {
                        "epoch_sum": rows.sum(0).norm().item(),
                        "last_step": rows[-1].norm().item(),
                        "mean_step_norm": sum(row.norm().item() for row in rows) / 3,
                    }[source]
            if epoch == 1:
                largest = max(shown.values())
                known = {
                    (name, channel): largest
                    for name, cost in method.pool.costs.items()
                    for channel in range(cost.channels)
                }
            known.update(shown)

    def test_rows_are_the_channels_own(self):
        """The gradients of real steps under a real selection, against stock autograd over whole weights."""
        model = convolutions()
        method = medyate(model, units=900, ranking=EQUAL)
        chosen = method.turn(moment(1)).selection
        drawn = channels_of(chosen)
        with adabet.apply(model, chosen):
            for step, batch in enumerate(IMAGES, start=1):
                train_step(model, batch, micro_batch=4)
                parts = trained_parameters(model, chosen.parameters)
                method.watch(moment(1, step), {name: part.parameter.grad for name, part in parts.items()})
                model.zero_grad()
        state = method.state_dict()
        norms = plain_norms(convolutions(), IMAGES, LAYERS)[0]
        expected = {
            int(method.pool.numbers(name, (channel,))): len(IMAGES) * norms[name][channel]
            for name, channels in drawn.items()
            for channel in channels
        }
        assert dict(zip(state["seen"].tolist(), state["seen_norms"].tolist(), strict=True)) == pytest.approx(
            expected, rel=1e-4
        )

    def test_rows_that_are_not_finite_are_passed_over(self):
        for source in SOURCES:
            method = medyate(units=700, ranking=EQUAL, norm_source=source)
            drawn = draw(method, 1)
            name = max(drawn, key=lambda layer: len(drawn[layer]))
            clean, broken = rows_for(drawn, 1), rows_for(drawn, 2)
            broken[f"{name}.weight"][0] = float("nan")
            broken[f"{name}.weight"][1, 0, 0] = float("inf")
            method.watch(moment(1, 1), clean)
            method.watch(moment(1, 2), broken)
            state = method.state_dict()
            found = dict(zip(state["seen"].tolist(), state["seen_norms"].tolist(), strict=True))
            for row in (0, 1):
                number = int(method.pool.numbers(name, drawn[name][row : row + 1]))
                assert found[number] == pytest.approx(clean[f"{name}.weight"][row].double().norm().item(), rel=1e-5)

    def test_channels_that_never_showed_a_finite_gradient_count_as_not_seen(self):
        method = medyate(units=700, ranking=EQUAL)
        drawn = draw(method, 1)
        rows = {name: torch.full_like(part, 2.0) for name, part in rows_for(drawn, 1).items()}
        name = next(iter(drawn))
        rows[f"{name}.weight"][0] = float("nan")
        method.watch(moment(1), rows)
        draw(method, 2)
        assert method.state_dict()["norms"].tolist() == pytest.approx([12**0.5 * 2] * method.pool.size)

    def test_without_any_gradient_all_are_alike(self):
        """Dead layers, or a method that was not shown anything."""
        for rows in (lambda drawn: {}, lambda drawn: {name: 0 * part for name, part in rows_for(drawn, 1).items()}):
            method = medyate(units=700, ranking=EQUAL)
            method.watch(moment(1), rows(draw(method, 1)))
            uniform = medyate(units=700, ranking=EQUAL, variant="lara-trady")
            assert draw(method, 2) == draw(uniform, 2)


class TestChances:
    def first_layers(self, method, count=3000):
        """How often a channel of each layer is drawn first."""
        owners = method.pool.owners
        orders = (method.order(moment(epoch)) for epoch in range(2, count + 2))
        return Counter(method.pool.names[owners[order[0]]] for order in orders)

    def check(self, counts, weights):
        total, draws = sum(weights.values()), sum(counts.values())
        expected = {name: draws * weight / total for name, weight in weights.items()}
        assert min(expected.values()) > 5
        assert sum((counts[name] - value) ** 2 / value for name, value in expected.items()) < CHI_SQUARE_4

    def test_are_equal_at_first(self):
        method = medyate(units=700, ranking=EQUAL)
        self.check(self.first_layers(method), {name: cost.channels for name, cost in method.pool.costs.items()})

    def test_are_proportional_to_the_norms(self):
        method = medyate(units=10**6, ranking=EQUAL)
        drawn = draw(method, 1)
        sizes = {"0": 9.0, "3": 1.0, "6": 2.0, "8": 5.0, "12": 0.5}
        method.watch(moment(1), {f"{name}.weight": torch.full((len(drawn[name]), 1), sizes[name]) for name in LAYERS})
        weights = {name: sizes[name] * method.pool.costs[name].channels for name in LAYERS}
        self.check(self.first_layers(method), weights)

    def test_by_a_full_gradient(self, monkeypatch):
        model = convolutions()
        method = medyate(model, units=900, ranking=EQUAL, variant="lara-prob-raw")
        first = adabet.methods.drawn_channels.gradient_norms(
            method._request, method.pool, method.selection, groups=None, batches=None
        )
        plain = plain_norms(convolutions(), IMAGES, LAYERS)[0]
        weights = {name: sum(plain[name]) for name in LAYERS}
        assert [float(norm) for norm in first.channels] == pytest.approx(
            [norm for norms in plain.values() for norm in norms], rel=1e-4
        )
        # it is the same every time, as nothing trains here
        monkeypatch.setattr("adabet.methods.drawn_channels.gradient_norms", lambda *_, **__: first)
        self.check(self.first_layers(method), weights)


RANKING = {"12": 3.0, "3": 95.0, "0": 1.0, "6": 1.0, "8": 0.0}


class TestVariants:
    def test_prev_medyate_draws_from_the_layers_of_trady(self):
        method = medyate(units=1000, variant="prev-medyate", ranking=RANKING)
        assert (
            method.pool.names
            == start("trady", convolutions(), IMAGES, head="14", units=1000, ranking=RANKING).pool.names
        )
        assert method.watches

    @pytest.mark.parametrize("variant", ["lara-medyate", "lara-trady", "lara-det-raw", "lara-prob-raw"])
    def test_the_others_by_lara(self, variant):
        # all channels of the layers with the largest values, 3, 12 and 0, cost, added up, 360, 624 and 1272 units:
        # a budget of 450 is 1.25, 0.72 and 0.35 of that
        method = medyate(units=450, variant=variant, alpha=0.5, ranking=RANKING)
        assert method.pool.names == ("0", "3", "12")
        assert method.watches == (variant == "lara-medyate")
        assert [epoch for epoch in (1, 2, 3) if method.due(moment(epoch))] == [1, 2, 3]

    def test_the_determined_one_takes_the_largest_norms(self):
        method = medyate(units=900, variant="lara-det-raw", ranking=EQUAL)
        norms = plain_norms(convolutions(), IMAGES, LAYERS)[0]
        best = sorted(
            ((norm, name, channel) for name in LAYERS for channel, norm in enumerate(norms[name])), reverse=True
        )
        expected, spent = {}, 0
        for _, name, channel in best:
            spent += method.pool.costs[name].space
            if spent > 900:
                break
            expected.setdefault(name, set()).add(channel)
        assert {name: set(channels) for name, channels in draw(method, 1).items()} == expected

    def test_unknown_ones(self):
        with pytest.raises(UnknownNameError, match="did you mean 'prev-medyate'"):
            medyate(units=900, variant="medyate")
        with pytest.raises(OptionError, match="norm_source"):
            medyate(units=900, norm_source="sum")
        with pytest.raises(OptionError, match="alpha"):
            medyate(units=900, alpha=0)
        with pytest.raises(OptionError, match=r"give units= .* or memory="):
            medyate()


@hypothesis_settings(max_examples=25)
@given(
    units=st.integers(60, 4000),
    seed=st.integers(0, 50),
    fill=st.sampled_from(["prefix", "skip_and_continue"]),
    source=st.sampled_from(SOURCES),
)
def test_no_draw_is_above_the_units(units, seed, fill, source):
    method = medyate(batches=IMAGES[:1], units=units, seed=seed, fill=fill, norm_source=source, ranking=EQUAL)
    for epoch in range(1, 5):
        drawn = draw(method, epoch)
        assert 0 < sum(len(part) * method.pool.costs[name].space for name, part in drawn.items()) <= units
        method.watch(moment(epoch), rows_for(drawn, seed + epoch))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_a_state_goes_on_as_the_method_itself_would(source, epochs):
    first = medyate(units=700, norm_source=source)
    for epoch in range(1, epochs + 1):
        drawn = draw(first, epoch)
        for step in (1, 2):
            first.watch(moment(epoch, step), rows_for(drawn, 10 * epoch + step))
    second = medyate(units=700, norm_source=source)
    second.load_state_dict(first.state_dict())
    for epoch in range(epochs + 1, epochs + 4):
        drawn = draw(first, epoch)
        assert drawn == draw(second, epoch)
        for method in (first, second):
            method.watch(moment(epoch), rows_for(drawn, epoch))
        states = first.state_dict(), second.state_dict()
        assert torch.equal(states[0]["norms"], states[1]["norms"])


@pytest.mark.parametrize(("source", "copies"), [("epoch_sum", 1), ("last_step", 0)])
def test_bytes_are_kept_with_what_is_remembered(source, copies):
    """The sum of an epoch's gradients is not part of a measured step, but of the budget."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, batches = convolutions(), labelled(3, 32, 32, samples=8)
        method = medyate(model, batches, memory=590_000, norm_source=source, ranking=EQUAL, alpha=0.9)
        for epoch in (1, 2, 3):
            selection = method.turn(moment(epoch)).selection
            drawn = channels_of(selection)
            own = sum(4 * len(part) * method.pool.costs[name].weight for name, part in drawn.items())
            step = measure_memory(model, batches[0], selection, inference=False).training.total
            assert 0.7 * 590_000 < step + copies * own <= 590_000
            method.watch(moment(epoch), rows_for(drawn, epoch))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("source", SOURCES)
def test_a_run_that_crashed_ends_like_one_that_did_not(tmp_path, source):
    def train(folder, *, resume=False, progress=None):
        model = make_net()
        result = adabet.fit(
            model,
            *make_loaders(),
            method="medyate",
            method_options={"units": 500, "norm_source": source},
            epochs=4,
            keep="last",
            lr=0.05,
            run_dir=tmp_path / folder,
            resume=resume,
            progress=progress,
        )
        return weights_of(model), result

    weights, expected = train("whole")
    with pytest.raises(Crash):
        train("stopped", progress=CrashAt(3, 2))
    resumed, result = train("stopped", resume=True)
    assert same(resumed, weights)
    assert without_seconds(result) == without_seconds(expected)
    turns = [(tmp_path / folder / "turns.jsonl").read_text() for folder in ("whole", "stopped")]
    assert turns[0] == turns[1]
