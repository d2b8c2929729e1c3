import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from statewise.seeding import derive_key, generator

PARTS = st.lists(st.integers() | st.text(alphabet=st.characters(exclude_characters="\x1f")), max_size=4)


def test_a_key_is_the_same_on_every_machine():
    # The first 8 bytes, little-endian, of the SHA-256 of "str:arm␟int:3".
    expected = int.from_bytes(hashlib.sha256(b"str:arm\x1fint:3").digest()[:8], "little")
    assert derive_key("arm", 3) == expected


@given(PARTS, PARTS)
def test_different_parts_give_different_keys(first, second):
    assert (derive_key(*first) == derive_key(*second)) == (first == second)


def test_the_type_of_a_part_counts():
    assert derive_key("1") != derive_key(1)


def test_parts_do_not_run_into_each_other():
    assert derive_key("ab", "c") != derive_key("a", "bc")
    assert derive_key(1, 23) != derive_key(12, 3)


def test_equal_parts_draw_the_same_and_no_global_generator_is_touched():
    np.random.seed(0)
    before = np.random.get_state()[1].tobytes()
    first, again = (generator("order", 4).random(5).tolist() for _ in range(2))
    assert first == again
    assert first != generator("order", 5).random(5).tolist()
    assert np.random.get_state()[1].tobytes() == before


def test_streams_of_neighbouring_keys_are_uncorrelated():
    # 200 streams of 200 uniforms: the correlation of neighbours is within 5 standard deviations, 5 / sqrt(199 · 200).
    draws = np.stack([generator("row", row).random(200) for row in range(200)])
    correlation = np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(199 * 200)
