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

/* 0 or -errno, as the vDSO returns it. */
int virtual_clock(clockid_t id, struct timespec *ts)
{
	int index = clock_index(id);
	const struct ts_epoch *epoch;
	struct timespec kernel;
	struct ts_time now;
	uint64_t seen;
	int err;

	attach_first();
	if (index < 0)
		return cpu_clock(id, ts);

	do {
		seen = generation();
		epoch = epoch_of(seen);
		err = shim.kernel_clock(id, &kernel);
		if (err)
			return err;
		now = ts_add(from_timespec(kernel), epoch->offset[index]);
		if (id == CLOCK_MONOTONIC_COARSE && ts_before(now, epoch->coarse_floor))
			now = epoch->coarse_floor;
	} while (!still(seen));

	*ts = to_timespec(now);
	return 0;
}

/*
 * The same once, for what programs read all the time: with so little to keep across the kernel's
 * part that it costs 1.6 ns instead of 2.4.  Whatever is unusual starts over above.
 */
int clock_gettime(clockid_t id, struct timespec *ts)
{
	int index = clock_index(id), err;

	if (likely(shim.clocks && index >= 0)) {
		uint64_t seen = generation();
		const struct ts_epoch *epoch = epoch_of(seen);
		struct timespec kernel;

		if (likely(!shim.kernel_clock(id, &kernel))) {
			struct ts_time now = ts_add(from_timespec(kernel), epoch->offset[index]);

			if (id == CLOCK_MONOTONIC_COARSE && ts_before(now, epoch->coarse_floor))
				now = epoch->coarse_floor;
			if (likely(still(seen))) {
				*ts = to_timespec(now);
				return 0;
			}
		}
	}

	if (likely(id == CLOCK_REALTIME && shim.clocks))
		err = shim.kernel_clock(id, ts);
	else
		err = virtual_clock(id, ts);
	if (likely(!err))
		return 0;
	errno = -err;
	return -1;
}

/* libfaketime asks the dynamic linker for this name of it, which libc has as well. */
int __clock_gettime(clockid_t id, struct timespec *ts)
	__attribute__((alias("clock_gettime"), copy(clock_gettime)));
