// SPDX-License-Identifier: MIT
/*
 * clock.c - reading a clock.
 *
 * A read is: sample the generation, read the kernel's clock, add the offset, and look
 * at the generation again.  A thread that is frozen anywhere in between and thawed
 * elsewhere finds another generation and starts over, so a reading never mixes two
 * hosts.  That also covers a freeze inside the vDSO itself, which CRIU does not.
 */
#include <errno.h>

#include "timespec.h"

static inline int read_virtual(clockid_t id, struct timespec *ts)
{
	int index = clock_index(id);
	struct ts_time now;
	struct timespec kernel;
	uint64_t seen;
	int err;

	attach_first();
	if (index < 0)
		return cpu_clock(id, ts);

	do {
		seen = generation();
		err = shim.kernel_clock(id, &kernel);
		if (unlikely(err))
			return err;
		now = ts_add(from_timespec(kernel), epoch_of(seen)->offset[index]);
		if (id == CLOCK_MONOTONIC_COARSE && ts_before(now, epoch_of(seen)->coarse_floor))
			now = epoch_of(seen)->coarse_floor;
	} while (unlikely(!still(seen)));

	ts->tv_sec = now.sec;
	ts->tv_nsec = now.nsec;
	return 0;
}

int virtual_clock(clockid_t id, struct timespec *ts)
{
	return read_virtual(id, ts);
}

int clock_gettime(clockid_t id, struct timespec *ts)
{
	int err = read_virtual(id, ts);

	if (likely(!err))
		return 0;
	errno = -err;
	return -1;
}

/* libfaketime asks the dynamic linker for this name of it, which libc has as well. */
int __clock_gettime(clockid_t id, struct timespec *ts)
	__attribute__((alias("clock_gettime"), copy(clock_gettime)));
