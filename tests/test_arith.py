"""The arithmetic of virtual time, property-tested on the C functions that the shim inlines."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timeshim._native import ffi, lib

NSEC = 10**9
I64 = st.integers(-(2**63), 2**63 - 1)
U64 = st.integers(0, 2**64 - 1)
SPAN = st.tuples(I64, st.integers(0, NSEC - 1))
HZ = st.integers(10**8, 10**10)


def time(span: tuple[int, int]) -> object:
    """Make a struct ts_time of (sec, nsec)."""
    return ffi.new("struct ts_time *", span)[0]


def exact(t: object) -> int:
    """Value of a struct ts_time in nanoseconds, as wide as it needs; checks that it is normal."""
    assert 0 <= t.nsec < NSEC  # type: ignore[attr-defined]
    return t.sec * NSEC + t.nsec  # type: ignore[attr-defined, no-any-return]


LOWEST = -(2**63) * NSEC
HIGHEST = (2**63 - 1) * NSEC + NSEC - 1


@given(I64)
def test_nanoseconds_there_and_back(ns: int) -> None:
    assert exact(lib.ts_from_ns(ns)) == ns
    assert lib.ts_to_ns(lib.ts_from_ns(ns)) == ns


@given(SPAN)
def test_to_ns_saturates(span: tuple[int, int]) -> None:
    assert lib.ts_to_ns(time(span)) == min(max(exact(time(span)), -(2**63)), 2**63 - 1)


@given(SPAN, SPAN)
def test_before_is_the_order_of_the_numbers(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert lib.ts_before(time(a), time(b)) == (exact(time(a)) < exact(time(b)))


@given(SPAN, SPAN)
def test_add_is_exact_or_saturates(t: tuple[int, int], offset: tuple[int, int]) -> None:
    total = exact(time(t)) + exact(time(offset))
    assert exact(lib.ts_add(time(t), time(offset))) == min(max(total, LOWEST), HIGHEST)


@given(SPAN, SPAN)
def test_remaining_is_never_negative(deadline: tuple[int, int], now: tuple[int, int]) -> None:
    left = exact(time(deadline)) - exact(time(now))
    assert exact(lib.ts_remaining(time(deadline), time(now))) == min(max(left, 0), HIGHEST)


@given(SPAN, SPAN)
def test_kernel_deadline_is_exact_past_or_never(
    deadline: tuple[int, int], offset: tuple[int, int]
) -> None:
    kernel = exact(time(deadline)) - exact(time(offset))
    got = exact(lib.ts_kernel_deadline(time(deadline), time(offset)))
    assert got == min(max(kernel, 0), HIGHEST)


@given(SPAN, SPAN)
def test_a_kernel_deadline_read_back_is_the_deadline(
    deadline: tuple[int, int], offset: tuple[int, int]
) -> None:
    """What the kernel is told and what the application reads agree to the nanosecond."""
    kernel = lib.ts_kernel_deadline(time(deadline), time(offset))
    if 0 < exact(kernel) < HIGHEST:
        assert exact(lib.ts_add(kernel, time(offset))) == exact(time(deadline))


@given(HZ, HZ)
def test_ratio_is_the_nearest_q4_60(virtual: int, hardware: int) -> None:
    ratio = lib.ts_ratio(virtual, hardware)
    exact_ratio = Fraction(virtual, hardware)
    if exact_ratio < 16 - Fraction(1, 2**60):
        assert abs(Fraction(ratio, 2**60) - exact_ratio) <= Fraction(1, 2**61)
    else:
        assert ratio == 0


@pytest.mark.parametrize(("virtual", "hardware"), [(16, 1), (2**63, 1), (1, 0)])
def test_ratio_that_does_not_fit_is_refused(virtual: int, hardware: int) -> None:
    assert lib.ts_ratio(virtual, hardware) == 0


@given(U64, U64)
def test_scale_is_the_floor_of_the_product(ticks: int, ratio: int) -> None:
    assert lib.ts_scale(ticks, ratio) == (ticks * ratio >> 60) % 2**64


@given(U64)
def test_ratio_one_changes_no_tick(ticks: int) -> None:
    assert lib.ts_scale(ticks, lib.ts_ratio(2_600_000_000, 2_600_000_000)) == ticks


@given(U64, U64, HZ, HZ)
def test_tsc_goes_on_exactly_where_it_stood(
    virtual: int, hardware: int, virtual_hz: int, hardware_hz: int
) -> None:
    ratio = lib.ts_ratio(virtual_hz, hardware_hz)
    offset = lib.ts_tsc_offset(virtual, hardware, ratio)
    assert lib.ts_virtual_tsc(hardware, ratio, offset) == virtual


@given(st.integers(0, 2**62), st.integers(0, 2**40), HZ, HZ)
def test_tsc_never_goes_back(base: int, step: int, virtual_hz: int, hardware_hz: int) -> None:
    ratio = lib.ts_ratio(virtual_hz, hardware_hz)
    if ratio:
        assert lib.ts_scale(base, ratio) <= lib.ts_scale(base + step, ratio) or (
            (base + step) * ratio >> 60 >= 2**64
        )


CLOCK = st.integers(0, 2**62)
CLOCKS = st.fixed_dictionaries(
    {
        "time": st.lists(CLOCK, min_size=lib.TS_CLOCKS, max_size=lib.TS_CLOCKS),
        "coarse": CLOCK,
        "realtime": CLOCK,
        "tsc": U64,
    }
)


@given(CLOCKS, CLOCKS, HZ, HZ)
def test_an_epoch_begins_where_the_clocks_stood(
    resume: dict[str, object], kernel: dict[str, object], virtual_hz: int, hardware_hz: int
) -> None:
    epoch = ffi.new("struct ts_epoch *")
    ratio = lib.ts_ratio(virtual_hz, hardware_hz)
    now = ffi.new("struct ts_clocks *", kernel)
    lib.ts_begin_epoch(epoch, ffi.new("struct ts_clocks *", resume), now, ratio)
    lib.ts_to_virtual(now, epoch)
    assert list(now.time) == resume["time"]
    assert now.tsc == resume["tsc"]
    # the coarse clock's lag differs between hosts, its readings still never go back
    assert now.coarse >= resume["coarse"]


@given(st.lists(st.tuples(CLOCKS, HZ), min_size=1, max_size=30), HZ)
def test_no_hop_of_a_chain_loses_a_tick(hops: list[tuple[dict[str, object], int]], hz: int) -> None:
    """The virtual clocks after any chain of standing-still hops are those before it."""
    start = ffi.new("struct ts_clocks *", hops[0][0])
    virtual = ffi.new("struct ts_clocks *", hops[0][0])
    epoch = ffi.new("struct ts_epoch *")
    for kernel, hardware_hz in hops:
        now = ffi.new("struct ts_clocks *", kernel)
        lib.ts_begin_epoch(epoch, virtual, now, lib.ts_ratio(hz, hardware_hz))
        lib.ts_to_virtual(now, epoch)
        virtual = now
    assert list(virtual.time) == list(start.time)
    assert virtual.tsc == start.tsc


@given(st.lists(st.tuples(U64, st.integers(0, 2**50), HZ), min_size=1, max_size=30), HZ)
def test_a_chain_of_hosts_is_off_by_a_tick_a_hop_at_most(
    hosts: list[tuple[int, int, int]], hz: int
) -> None:
    """What is lost is the ratio's rounding while it counts, and the fraction of a tick at each end."""
    virtual = start = 10**12
    exact_ticks = Fraction(0)
    bound = Fraction(0)
    for boot, counted, hardware_hz in hosts:
        ratio = lib.ts_ratio(hz, hardware_hz)
        if not ratio:
            continue
        offset = lib.ts_tsc_offset(virtual, boot, ratio)
        # the hardware's counter may not wrap on the way, which takes centuries
        if boot + counted >= 2**64 or (boot + counted) * ratio >> 60 >= 2**64:
            continue
        virtual = lib.ts_virtual_tsc(boot + counted, ratio, offset)
        exact_ticks += Fraction(counted * hz, hardware_hz)
        bound += Fraction(counted, 2**61) + 1
    assert abs(virtual - start - exact_ticks) <= bound


SLOT = st.fixed_dictionaries(
    {
        "owner": st.integers(0, 2**32 - 1),
        "armed": st.integers(0, 2**32 - 1),
        "deadline": st.tuples(I64, I64),
        "kernel": st.just((7, 7)),
        "clock": st.integers(0, 2**32 - 1) | st.integers(0, 3),
    }
)


@given(st.lists(SLOT, max_size=8), st.lists(SPAN, min_size=3, max_size=3))
def test_slots_of_any_content_are_corrected_or_left_alone(
    slots: list[dict[str, object]], offsets: list[tuple[int, int]]
) -> None:
    """The application may write anything there; the supervisor must not be led astray."""
    area = ffi.new("struct ts_slot[]", slots)
    epoch = ffi.new("struct ts_epoch *", {"offset": offsets})
    corrected = lib.ts_correct_slots(area, len(slots), epoch)
    expected = 0
    for slot, given_slot in zip(area, slots, strict=True):
        sound = (
            slot.owner and slot.armed and slot.clock < lib.TS_CLOCKS
        ) and 0 <= slot.deadline.nsec < NSEC
        expected += bool(sound)
        wanted = (
            exact(lib.ts_kernel_deadline(slot.deadline, epoch.offset[slot.clock]))
            if sound
            else 7 * NSEC + 7
        )
        assert slot.kernel.sec * NSEC + slot.kernel.nsec == wanted
        assert (slot.owner, slot.clock) == (given_slot["owner"], given_slot["clock"])
    assert corrected == expected
