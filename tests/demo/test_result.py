"""Mean and spread of a method's runs."""

import numpy as np
import pytest

from adabet.demo import MethodOutcome


def outcome(*accuracies):
    return MethodOutcome("adabet", "AdaBet", 3, 9770, 0.01, ((0.01, 0.9),), accuracies, 1_520_000)


def test_mean_and_spread_are_those_of_numpy():
    accuracies = [0.93, 0.95, 0.91]
    assert outcome(*accuracies).accuracy == pytest.approx(np.mean(accuracies))
    assert outcome(*accuracies).spread == pytest.approx(np.std(accuracies, ddof=1))


def test_one_run_has_no_spread():
    assert outcome(0.93).spread == 0
