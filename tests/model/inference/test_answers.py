"""What of a growing text may be told, and where a user's stops end it."""

from hypothesis import given
from hypothesis import strategies as st

from model.inference.answers import Stops

WORDS = st.text("ab \n", min_size=1, max_size=12)


@given(WORDS, st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_nothing_is_told_that_a_stop_takes_away(text: str, texts: list[str], data: st.DataObject) -> None:
    stops, told, place = Stops(tuple(texts)), "", 0
    while place < len(text):
        place += data.draw(st.integers(1, 5))
        grown = text[:place]
        if any(stop in grown for stop in texts):
            break
        told = max(told, stops.certain(grown), key=len)
    assert stops.before(grown).startswith(told)
    assert not any(stop in stops.before(grown) for stop in texts)


def test_a_text_ends_before_the_stop_that_comes_first() -> None:
    assert Stops(("d", "b c")).before("a b c d") == "a"
    assert Stops(()).before("a ") == "a "
    assert Stops(("abc", "bx")).certain("xab") == "x"
