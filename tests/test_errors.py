import inspect
import warnings

import pytest

from adabet import errors

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.AdabetError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_is_an_adabet_error_and_a_builtin(kind):
    builtins = [base for base in kind.__mro__ if base.__module__ == "builtins"]
    assert kind is errors.AdabetError or {base.__name__ for base in builtins} - {"Exception", "BaseException", "object"}
    assert kind.__doc__


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("adabt", "did you mean 'adabet'?"),
        ("last_k", "did you mean 'last-k'?"),
        ("zzzzzz", "known: adabet, last-k, random"),
    ],
)
def test_unknown_name_offers_the_nearest(name, hint):
    error = errors.UnknownNameError("method", name, {"random", "adabet", "last-k"})
    assert str(error) == f"unknown method {name!r}; {hint}"
    assert isinstance(error, LookupError)


def test_a_warning_can_be_silenced_by_its_class():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", errors.AdabetWarning)
        warnings.warn("something", errors.AdabetWarning, stacklevel=1)
    assert not caught
