/* SPDX-License-Identifier: MIT */
/*
 * arith.h - the arithmetic of virtual time, written once.
 *
 * Pure functions: no memory, no system calls, no errno.  The shim inlines them into
 * its read path and Python calls them through cffi, so the property tests exercise
 * what the application runs.  Every result saturates instead of wrapping, except the
 * TSC, which is a 64-bit counter and wraps as the hardware's does.
 */
#ifndef TIMESHIM_ARITH_H
#define TIMESHIM_ARITH_H

#include <stdbool.h>
#include <stdint.h>

#include "page.h"

#define TS_NSEC_PER_SEC 1000000000

static inline struct ts_time ts_from_ns(int64_t ns)
{
	struct ts_time t = { ns / TS_NSEC_PER_SEC, ns % TS_NSEC_PER_SEC };

	if (t.nsec < 0) {
		t.sec -= 1;
		t.nsec += TS_NSEC_PER_SEC;
	}
	return t;
}

static inline int64_t ts_to_ns(struct ts_time t)
{
	int64_t ns;

	/* Borrow a second when negative, or INT64_MIN itself would overflow on the way. */
	if (t.sec < 0) {
		t.sec += 1;
		t.nsec -= TS_NSEC_PER_SEC;
	}
	if (__builtin_mul_overflow(t.sec, (int64_t)TS_NSEC_PER_SEC, &ns) ||
	    __builtin_add_overflow(ns, t.nsec, &ns))
		return t.sec < 0 ? INT64_MIN : INT64_MAX;
	return ns;
}

static inline bool ts_before(struct ts_time a, struct ts_time b)
{
	return a.sec < b.sec || (a.sec == b.sec && a.nsec < b.nsec);
}

/* virtual = kernel + offset */
static inline struct ts_time ts_add(struct ts_time t, struct ts_time offset)
{
	struct ts_time sum;

	sum.nsec = t.nsec + offset.nsec;
	/* carry first: INT64_MAX + (-1) + 1 must not look like an overflow */
	int64_t carry = sum.nsec >= TS_NSEC_PER_SEC;

	sum.nsec -= carry * TS_NSEC_PER_SEC;
	if (__builtin_add_overflow(t.sec, offset.sec, &sum.sec) ||
	    __builtin_add_overflow(sum.sec, carry, &sum.sec)) {
		sum.sec = t.sec < 0 ? INT64_MIN : INT64_MAX;
		sum.nsec = t.sec < 0 ? 0 : TS_NSEC_PER_SEC - 1;
	}
	return sum;
}

/*
 * The deadline to give to the kernel so that a wait ends at the virtual time deadline.
 * One that lies before the kernel's epoch has passed: the kernel takes no negative
 * times, and 0 says the same.
 */
static inline struct ts_time ts_kernel_deadline(struct ts_time deadline, struct ts_time offset)
{
	struct ts_time kernel;
	int64_t borrow;

	kernel.nsec = deadline.nsec - offset.nsec;
	borrow = kernel.nsec < 0;
	kernel.nsec += borrow * TS_NSEC_PER_SEC;
	if (__builtin_sub_overflow(deadline.sec, offset.sec, &kernel.sec) ||
	    __builtin_sub_overflow(kernel.sec, borrow, &kernel.sec)) {
		kernel.sec = deadline.sec < 0 ? 0 : INT64_MAX;
		kernel.nsec = deadline.sec < 0 ? 0 : TS_NSEC_PER_SEC - 1;
	} else if (kernel.sec < 0) {
		kernel.sec = 0;
		kernel.nsec = 0;
	}
	return kernel;
}

/* What is left at the time now of a span that ends at deadline: at least 0. */
static inline struct ts_time ts_remaining(struct ts_time deadline, struct ts_time now)
{
	return ts_kernel_deadline(deadline, now);
}

/* virtual_hz / hardware_hz as Q4.60, rounded to nearest; 0 if it does not fit (16 or more). */
static inline uint64_t ts_ratio(uint64_t virtual_hz, uint64_t hardware_hz)
{
	unsigned __int128 ratio;

	if (!hardware_hz)
		return 0;
	ratio = ((unsigned __int128)virtual_hz << TS_RATIO_SHIFT) + hardware_hz / 2;
	ratio /= hardware_hz;
	return ratio >> 64 ? 0 : (uint64_t)ratio;
}

static inline uint64_t ts_scale(uint64_t ticks, uint64_t ratio)
{
	return (uint64_t)((unsigned __int128)ticks * ratio >> TS_RATIO_SHIFT);
}

static inline uint64_t ts_virtual_tsc(uint64_t hardware, uint64_t ratio, uint64_t offset)
{
	return ts_scale(hardware, ratio) + offset;
}

/* The offset that makes the virtual TSC read virtual_tsc when the hardware reads hardware. */
static inline uint64_t ts_tsc_offset(uint64_t virtual_tsc, uint64_t hardware, uint64_t ratio)
{
	return virtual_tsc - ts_scale(hardware, ratio);
}

#endif
