"""Stop strings: cut exactly, wherever the pieces of text are divided."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikpy_llm.errors import IkpyError
from ikpy_llm.text.stops import StopMatcher


def through(pieces, stops):
    matcher = StopMatcher(stops)
    shown = [matcher.feed(piece) for piece in pieces]
    return "".join(shown) + matcher.flush(), matcher.found


def test_examples():
    assert through(["Hello Us", "er", ": x"], ["User:"]) == ("Hello ", "User:")
    assert through(["Hello Us", "ed"], ["User:"]) == ("Hello Used", None)
    assert through(["a", "b", "c"], ()) == ("abc", None)
    assert through(["abcd"], ["cd", "bc"]) == ("a", "bc")  # the one that begins first
    assert through(["aab"], ["ab", "aab"]) == ("", "aab")
    assert through(["x"], "x") == ("", "x") and through(["x"], [""]) == ("x", None)
    matcher = StopMatcher(["<end>"])
    assert [matcher.feed(x) for x in ("a<", "en", "d!")] == ["a", "", "<end!"]
    assert matcher.found is None
    with pytest.raises(IkpyError, match="stop is"):
        StopMatcher([3])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab", max_size=3), max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_as_if_all_came_at_once(pieces, stops):
    text = "".join(pieces)
    shown, found = through(pieces, stops)
    firsts = [text.find(s) for s in stops if s in text]
    if found is None:
        assert shown == text and not firsts
    else:  # a shorter stop string may be complete before one that begins earlier is
        assert text.startswith(shown + found) and min(firsts) <= len(shown)
        assert not any(s in shown for s in stops)
