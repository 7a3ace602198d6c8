"""Whatever text goes in, the same text comes out, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from adabet.report.markup import FORBIDDEN, table, tag
from tests.report.reading import read, rows_of


@given(st.text(), st.text())
def test_any_text_is_read_back_as_that_text(inside, attribute):
    element = read(tag("p", inside, title=attribute)).one("p")
    # the parser turns line ends into one kind, as browsers do
    assert element.text == FORBIDDEN.sub("\ufffd", inside)
    assert element.attributes == {"title": FORBIDDEN.sub("\ufffd", attribute)}


def test_markup_is_not_escaped_twice():
    assert tag("p", tag("b", "1 < 2")) == "<p><b>1 &lt; 2</b></p>"


def test_markup_that_was_changed_as_text_is_text_again():
    changed = tag("b", "x") + "<script>"
    assert "<script>" not in tag("p", changed)


def test_what_no_page_may_hold_is_replaced():
    name = b"caf\xe9 \x07\xe2\x80\xae.png".decode("utf-8", "surrogateescape")
    found = tag("p", name)
    assert found == "<p>caf\ufffd \ufffd\ufffd.png</p>"
    found.encode("utf-8")


def test_a_table_has_headings_for_its_columns_and_rows():
    found = read(table("What <it> shows", ["name", "size"], [["a", "1"], ["b", "2"]], numbers=[1], marked=[1]))
    whole = found.one("table")
    assert whole.one("caption").text == "What <it> shows"
    assert rows_of(whole) == [["name", "size"], ["a", "1"], ["b", "2"]]
    assert [cell.attributes["scope"] for cell in whole.all("th")] == ["col", "col", "row", "row"]
    scrolling = found.one("div", class_="scroll")
    assert scrolling.attributes["tabindex"] == "0"
    assert scrolling.attributes["aria-label"] == "Table: What <it> shows"
