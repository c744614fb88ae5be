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

int clock_gettime(clockid_t id, struct timespec *ts)
{
	int index = clock_index(id);
	struct ts_time now;
	struct timespec kernel;
	uint64_t seen;
	int err;

	attach_first();
	if (index < 0) {
		err = shim.kernel_clock(id, ts);
		goto out;
	}

	do {
		seen = generation();
		err = shim.kernel_clock(id, &kernel);
		if (unlikely(err))
			goto out;
		now = ts_add(from_timespec(kernel), epoch_of(seen)->offset[index]);
		if (id == CLOCK_MONOTONIC_COARSE && ts_before(now, epoch_of(seen)->coarse_floor))
			now = epoch_of(seen)->coarse_floor;
	} while (unlikely(!still(seen)));

	ts->tv_sec = now.sec;
	ts->tv_nsec = now.nsec;
	return 0;
out:
	if (likely(!err))
		return 0;
	errno = -err;
	return -1;
}
