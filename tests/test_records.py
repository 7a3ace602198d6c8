import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adabet.errors import CheckpointError
from adabet.records import VERSION, read_record, write_record

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
KEYS = st.text().filter(lambda key: key not in ("kind", "version"))


@given(st.dictionaries(KEYS, JSON))
def test_round_trip(values):
    assert read_record("some/kind", write_record("some/kind", values)) == values


def test_kind_and_version_come_first():
    assert list(json.loads(write_record("some/kind", {"a": 1}))) == ["kind", "version", "a"]


@pytest.mark.parametrize("text", ["", "{", "kind", "\0", "{'kind': 1}"])
def test_not_json(text):
    with pytest.raises(CheckpointError, match="kind 'some/kind', this one is not JSON"):
        read_record("some/kind", text)


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '"text"', "{}", '{"kind": "other", "version": 1}', '{"kind": null}']
)
def test_another_kind(text):
    with pytest.raises(CheckpointError, match="expected a file of kind 'some/kind', got"):
        read_record("some/kind", text)


@pytest.mark.parametrize("version", [VERSION + 1, 0, None, "1", [1]])
def test_another_version(version):
    text = json.dumps({"kind": "some/kind", "version": version})
    with pytest.raises(CheckpointError, match=f"expected version {VERSION} .*write it anew"):
        read_record("some/kind", text)


@given(st.text())
def test_any_text_is_read_or_refused(text):
    with pytest.raises(CheckpointError):
        read_record("some/kind", text)
