"""Counts are exact, refuse junk, and labels read back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_poro.units import format_bytes, format_count, format_seconds, parse_count


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (0, 0),
        (2048, 2048),
        ("0", 0),
        ("10_000", 10_000),
        ("500k", 500_000),
        ("500K", 500_000),
        ("4M", 4_000_000),
        ("10B", 10_000_000_000),
        ("1.5T", 1_500_000_000_000),
        ("1T", 10**12),
        (" 2.5k ", 2500),
        ("3.0", 3),
        # Through a float, 9007199254740.993 * 10^3 is 9007199254740992.
        ("9007199254740.993k", 9_007_199_254_740_993),
        ("1000000.000001T", 1_000_000_000_001_000_000),
    ],
)
def test_a_count_is_read_exactly(text: int | str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize(
    "junk",
    ["", "k", "1e9", "-1", -1, "1.5", "1.0005k", "1 000", "10b", "4m", "1_", "_1", "1__0", "٣", "10BB", ".5k", "0x10"],
)
def test_junk_is_not_a_count(junk: int | str) -> None:
    with pytest.raises(ValueError, match=r"is not a|is negative"):
        parse_count(junk)


@pytest.mark.parametrize("junk", [True, 1.0, None, [1]])
def test_a_value_of_another_type_is_not_a_count(junk: Any) -> None:
    with pytest.raises(ValueError, match="is not a count"):
        parse_count(junk)


@pytest.mark.parametrize(
    ("number", "label"),
    [
        (0, "0"),
        (999, "999"),
        (82_000, "82k"),
        (500_000, "500k"),
        (1_000_001, "1000001"),
        (1_500_000_000, "1500M"),
        (100 * 10**9, "100B"),
        (10**12, "1000B"),
    ],
)
def test_a_label_is_exact_and_stops_at_billions(number: int, label: str) -> None:
    assert format_count(number) == label


@given(st.integers(min_value=0, max_value=10**15) | st.integers(0, 10**6).map(lambda n: n * 10**9))
def test_every_label_reads_back(number: int) -> None:
    assert parse_count(format_count(number)) == number


def test_a_negative_number_has_no_label() -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        format_count(-1)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (68_433_899_520, "68.4 GB"),
        (10**21, "1e+03 EB"),
    ],
)
def test_bytes_have_three_digits(number: int, text: str) -> None:
    assert format_bytes(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.85, "850 ms"),
        (0.9996, "1.0 s"),
        (24.0529, "24.1 s"),
        (59.96, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (86_399, "1 d 00 h"),
        (66.4 * 86_400, "66 d 10 h"),
        (-3, "-3.0 s"),
    ],
)
def test_a_duration_never_shows_sixty_of_a_unit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("number", "unit", "label"),
    [
        (500 * 10**9, "T", "0.5T"),
        (10**12, "T", "1T"),
        (10**12, "B", "1000B"),
        (163_840, "k", "163.84k"),
        (163_840, "T", "0.00000016384T"),
        (1, "B", "0.000000001B"),
        (0, "M", "0M"),
    ],
)
def test_a_label_can_count_in_one_unit_throughout(number: int, unit: str, label: str) -> None:
    assert format_count(number, unit=unit) == label


@given(st.integers(min_value=0, max_value=10**15), st.sampled_from("kMBT"))
def test_every_label_in_a_unit_reads_back(number: int, unit: str) -> None:
    assert parse_count(format_count(number, unit=unit)) == number
