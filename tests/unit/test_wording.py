"""How counts and sizes are said."""

from __future__ import annotations

from shared.model.wording import byte_size, counted


def test_one_is_no_plural() -> None:
    said = [counted(n, "more machine") for n in (0, 1, 2)]
    assert said == ["0 more machines", "1 more machine", "2 more machines"]


def test_sizes_are_told_in_the_unit_that_fits() -> None:
    said = [byte_size(n) for n in (0, 912, 20_480, 11_000_000, 2_300_000_000, 5e12)]
    assert said == ["0 B", "912 B", "20.5 kB", "11.0 MB", "2.3 GB", "5.0 TB"]
