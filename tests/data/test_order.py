"""The order of samples: a permutation each epoch, the same however a step is divided."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from deepsynth_min.data.order import Mixture, Order, Permutation, rows_per_epoch, share


class Rows:
    """Rows whose lengths are known."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def size(self, i: int) -> int:
        return i * 7919 % 1000


@settings(deadline=None)  # another process may have the core
@given(st.integers(1, 3000), st.integers(0, 2**64), st.integers(0, 5))
def test_every_size_and_key_gives_a_permutation(size, seed, epoch):
    p = Permutation(size, seed, epoch)
    assert sorted(p[i] for i in range(size)) == list(range(size))


def test_all_permutations_of_three_are_about_equally_frequent():
    found = Counter(tuple(Permutation(3, seed)[i] for i in range(3)) for seed in range(6000))
    assert len(found) == 6 and all(880 < n < 1120 for n in found.values())


def test_places_far_apart_are_not_correlated():
    """Neighbouring places of a large permutation: as many rises as falls, no common distance."""
    p = Permutation(10**7, 3)
    values = [p[i] for i in range(20_000)]
    rises = sum(a < b for a, b in zip(values, values[1:]))
    assert abs(rises - 10_000) < 250
    assert max(Counter(b - a for a, b in zip(values, values[1:])).values()) <= 3


def test_a_numpy_integer_is_a_place_like_any_other():
    p = Permutation(1000, 3)
    assert [p[i] for i in np.arange(1000)] == [p[i] for i in range(1000)]


@pytest.mark.parametrize("i", [-1, 5])
def test_a_place_outside_is_an_error(i):
    with pytest.raises(IndexError):
        Permutation(5, 0)[i]


@pytest.mark.parametrize("bucket", [0, 4])
def test_an_epoch_has_every_row_once_and_epochs_differ(bucket):
    order = Order(Rows(32), seed=5, global_batch=8, bucket=bucket)
    epochs = [
        [row for step in range(e * 4, e * 4 + 4) for row in order.step(step)] for e in range(3)
    ]
    assert all(sorted(epoch) == list(range(32)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("bucket", [0, 16])
def test_any_step_can_be_asked_for_first(bucket):
    order, again = (Order(Rows(1000), 5, 8, bucket) for _ in range(2))
    steps = [order.step(step) for step in range(200)]
    assert all(again.step(step) == steps[step] for step in (199, 3, 42, 17, 16))


def test_bucketing_puts_rows_of_one_length_into_one_step_without_sorting_the_steps():
    rows = Rows(1600)
    spread = {}
    for bucket in (0, 16):
        order = Order(rows, 1, 8, bucket)
        sizes = [[rows.size(i) for i in order.step(step)] for step in range(160)]
        spread[bucket] = sum(max(s) - min(s) for s in sizes) / 160
        means = [sum(s) / 8 for s in sizes]
        assert 0.3 < sum(a < b for a, b in zip(means, means[1:])) / 159 < 0.7
    assert spread[16] < spread[0] / 2.5


@pytest.mark.parametrize("world, size, accumulate", [(1, 8, 1), (1, 2, 4), (2, 4, 1), (4, 1, 2)])
def test_a_step_has_the_same_samples_however_it_is_divided(world, size, accumulate):
    rows = Order(Rows(100), 1, 8, 4).step(7)
    pieces = [
        share(rows, micro, rank, world, size)
        for micro in range(accumulate)
        for rank in range(world)
    ]
    assert sorted(row for piece in pieces for row in piece) == sorted(rows)
    assert all(len(piece) == size for piece in pieces)


class Numbered:
    """Rows that are their own numbers."""

    def __init__(self, size: int):
        self.values = range(size)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> int:
        return self.values[i]

    def signature(self) -> str:
        return f"{len(self)} numbers"


def taken(order: Order, steps: range) -> list[int]:
    return [row for step in steps for row in order.step(step)]


def test_a_mixture_takes_each_source_as_often_as_its_weight_says():
    rows = Mixture([Numbered(10), Numbered(20), Numbered(3)], [1.0, 0.3, 2.0])
    assert rows_per_epoch(rows) == 10 + 6 + 6 and len(rows) == 33
    order = Order(rows, seed=1, global_batch=22)
    for epoch in range(3):
        found = Counter(order.step(epoch))
        assert all(found[row] == 1 for row in range(10))
        assert sum(found[row] for row in range(10, 30)) == 6
        assert all(found[row] == 2 for row in range(30, 33))
    third = Counter(taken(order, range(10)))  # 10 epochs of 0.3: each row three times
    assert all(third[row] == 3 for row in range(10, 30))


def test_a_mixture_is_a_pure_function_of_seed_and_step_and_numbers_through_its_sources():
    rows = Mixture([Numbered(10), Numbered(7)], [1.0, 0.5])
    forward = [Order(rows, 3, 4).step(step) for step in range(20)]
    again = Order(rows, 3, 4)
    assert [again.step(step) for step in reversed(range(20))] == forward[::-1]
    assert forward != [Order(rows, 4, 4).step(step) for step in range(20)]
    assert [rows[i] for i in (0, 9, 10, 16)] == [0, 9, 0, 6]
    assert rows.signature() == "1 * 10 numbers + 0.5 * 7 numbers"
    for i in (-1, 17):
        with pytest.raises(IndexError):
            rows[i]


def test_one_source_of_weight_one_is_no_other_order():
    """Runs that were made before there were mixtures go on as they would have."""
    plain = [Order(Numbered(10), 3, 4).step(step) for step in range(9)]
    assert [sorted(taken(Order(Numbered(10), 3, 5), range(2 * e, 2 * e + 2))) for e in (0, 1)] == [
        list(range(10))
    ] * 2
    assert plain[0] == [2, 6, 7, 3]
