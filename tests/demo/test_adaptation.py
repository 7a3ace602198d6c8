"""One user's digits, and training on them."""

import math

import pytest
import torch

from adabet.demo.adaptation import User, adapt, read
from adabet.demo.digits import load_part, user_conditions
from adabet.demo.network import demo_model
from adabet.methods import select


@pytest.fixture(scope="module")
def user():
    return User.meet()


def digits_of(loader):
    return {image.numpy().tobytes() for images, _ in loader for image in images}


def test_the_user_has_five_batches_of_eight_to_choose_by(user):
    assert [batch.shape for batch in user.unlabelled] == [(8, 1, 24, 24)] * 5


def test_all_digits_are_under_the_users_conditions(user):
    assert torch.equal(user.test.images, user_conditions(load_part("test").images))
    assert torch.equal(user.labelled.images, user_conditions(load_part("labelled").images))
    assert torch.equal(torch.cat(user.unlabelled), user_conditions(load_part("unlabelled").images))


def test_a_seed_decides_the_digits_and_their_order(user):
    first, again, other = (next(iter(user.loaders(seed=seed)[0])) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert digits_of(user.loaders(seed=0)[0]) != digits_of(user.loaders(seed=1)[0])


def test_training_and_validation_share_no_digit(user):
    training, validation = map(digits_of, user.loaders(seed=3))
    assert len(training) == 300
    assert len(validation) == 100
    assert not training & validation


def test_the_best_rate_is_kept_and_one_that_diverges_is_not(user):
    runs = []
    selection = select("full", demo_model(), user.unlabelled)
    adaptations = adapt(
        user, selection, learning_rates=(1e-9, 1e-3, 1e6), seeds=2, epochs=1, done=lambda: runs.append(1)
    )
    accuracies = dict(adaptations.validation)
    assert adaptations.learning_rate == 1e-3
    assert accuracies[1e-3] > accuracies[1e-9] > accuracies[1e6] == 0
    assert len(runs) == 4
    first, second = (model.head.weight for model in adaptations.models)
    assert not torch.equal(first, second), "each seed trains on its own"
    assert all(math.isfinite(float(weight.detach().sum())) for weight in (first, second))


def test_only_what_was_selected_moves(user):
    selection = select("head", demo_model(), user.unlabelled)
    (model,) = adapt(user, selection, learning_rates=(0.3,), seeds=1, epochs=1, done=lambda: None).models
    before = demo_model().state_dict()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.weight", "head.bias"}


def test_read_gives_digits_whatever_mode_the_model_is_in(user):
    model = demo_model().train()
    answers = read(model, user.test.images[:16])
    assert torch.equal(answers, read(demo_model().eval(), user.test.images[:16]))
    assert answers.shape == (16,)
