"""Items of any reader gathered into batches of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs.tiles import QuarantineEntry
from pipeline.readers import dispatch as module
from pipeline.readers.dispatch import in_batches
from pipeline.readers.stamps import Stamp


def stamp(number: int, side: int = 4, flux: bool = True) -> Stamp:
    pixels = np.zeros((3, side, side), "f4") if flux else np.zeros((side, side, 3), "u1")
    return Stamp(f"s#{number}", pixels, 1.0, 2.0, 0.262, 0, 0.0, "layer", "rule")


def no_stamp(number: int) -> QuarantineEntry:
    return QuarantineEntry(file="f", source_name=f"s#{number}", reason="r", detail="d")


kinds = st.lists(st.one_of(st.tuples(st.integers(1, 5), st.booleans()), st.none()), max_size=60)


@settings(max_examples=200, deadline=None)
@given(kinds, st.integers(1, 9))
def test_batches_are_bounded_uniform_and_lose_nothing(kinds: list[tuple[int, bool] | None], size: int) -> None:
    items = [no_stamp(i) if kind is None else stamp(i, *kind) for i, kind in enumerate(kinds)]
    taken = 0

    def feed() -> Iterator[Stamp | QuarantineEntry]:
        nonlocal taken
        for item in items:
            taken += 1
            yield item

    seen: list[str] = []
    refused: list[str] = []
    given_out = 0
    for batch in in_batches(feed(), size):
        given_out += len(batch.stamps) + len(batch.quarantine)
        assert len(batch.stamps) <= size
        stamps_taken = sum(isinstance(item, Stamp) for item in items[:taken])
        assert stamps_taken - len(seen) <= size, "more stamps wait than are allowed"
        assert len({(s.pixels.shape, s.pixels.dtype) for s in batch.stamps}) <= 1
        seen += [s.source_name for s in batch.stamps]
        refused += [q.source_name for q in batch.quarantine]
    assert sorted(seen + refused) == sorted(item.source_name for item in items)
    assert len(set(seen) & set(refused)) == 0 and given_out == len(items)


def test_large_stamps_wait_in_small_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WAITING_BYTES", 3 * stamp(0).pixels.nbytes)
    assert [len(b.stamps) for b in in_batches(iter([stamp(i) for i in range(7)]), 100)] == [3, 3, 1]


def test_an_early_refusal_is_not_held_back_to_the_end() -> None:
    batches = list(in_batches(iter([no_stamp(0), stamp(1), stamp(2)]), 1))
    assert [len(b.quarantine) for b in batches] == [1, 0]
