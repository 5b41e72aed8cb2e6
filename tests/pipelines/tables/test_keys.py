"""Keys are what a shard allows, and tell apart what was told apart before."""

import hashlib
import re
from string import ascii_lowercase, digits

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.tables.keys import make_key, row_key, stem_of

# The first draw builds tables of all characters, which takes seconds on a busy machine.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(st.text() | st.text(st.characters()))
def test_any_text_becomes_a_legal_key(raw: str) -> None:
    key = make_key(raw)
    assert re.fullmatch(r"[a-z0-9_-]{1,64}", key)
    assert make_key(raw) == key
    assert make_key(key) == key


@patient
@given(st.text(), st.text())
def test_different_texts_get_different_keys(one: str, other: str) -> None:
    assert (make_key(one) == make_key(other)) == (one == other)


@patient
@given(st.text(ascii_lowercase + digits + "_", min_size=1, max_size=64))
def test_a_text_that_is_a_key_stays(raw: str) -> None:
    assert make_key(raw) == raw


@pytest.mark.parametrize(
    ("raw", "front"), [("A.b/C", "a-b-c-"), ("../../etc", "etc-"), ("", ""), ("日本", ""), ("x" * 65, "x" * 55 + "-")]
)
def test_changed_texts_keep_a_readable_front_before_8_hex_digits_of_their_hash(raw: str, front: str) -> None:
    assert make_key(raw) == front + hashlib.sha256(raw.encode()).hexdigest()[:8]


def test_case_and_dots_do_not_merge() -> None:
    assert len({make_key(raw) for raw in ("a.b", "a/b", "a-b", "A-B", "a b", "a.b ")}) == 6


def test_row_keys_count_behind_the_stem() -> None:
    assert row_key(12) == "0000012"
    assert row_key(12, "cat_1") == "cat_1-0000012"
    assert len(row_key(12, "x" * 100)) == 64
    assert row_key(12, "x" * 100) != row_key(13, "x" * 100)


@pytest.mark.parametrize("name", ["dir/v_1.x.mp4", "dir\\v_1.x.mp4", "../v_1.x.mp4", "v_1.x.mp4"])
def test_a_stem_has_neither_folder_nor_suffix(name: str) -> None:
    assert stem_of(name) == "v_1.x"
