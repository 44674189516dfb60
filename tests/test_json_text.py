"""The first JSON object of a text: what is passed over, what is open, and that more text never changes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.json_text import find_object

RICH = (
    '{"a":"\\u00e9\\ud83d\\ude00x\\n\\"{}\\\\","n":[-1.5e-10,0,true,false,null,NaN,-Infinity,Infinity,1E+5, {} ,[ ]],'
    ' "s":{"a":{"b":1}} }'
)


@pytest.mark.parametrize("before", ["", "The set {a,b} and {", "<think>{maybe}</think>"])
def test_object_cut_anywhere_hides_what_is_nested_in_it(before):
    for cut in range(1, len(RICH)):
        found = find_object(before + RICH[:cut])
        assert found.fields is None and found.problem, RICH[:cut]
    assert find_object(before + RICH + "}} {").fields.keys() == {"a", "n", "s"}


@pytest.mark.parametrize("text", ["no brace", "{a} {1:2} {'a':1}", '{"a" 1}', '{"a":01}', '{"a":\\}'])
def test_text_without_an_object_says_why(text):
    found = find_object(text)
    assert found.fields is None and found.problem


@given(st.text('{}[]":,ab1 .-eE\\utrlnN', max_size=40), st.text('{}[]":,ab1 ', max_size=10))
def test_more_text_never_changes_an_object_that_was_found(text, more):
    found = find_object(text)
    if found.fields is not None:
        assert find_object(text + more).fields == found.fields
