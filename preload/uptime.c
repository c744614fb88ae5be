// SPDX-License-Identifier: MIT
/*
 * uptime.c - the time since boot, where libc returns it as something other than a timespec.
 *
 * Both values are made from the virtual clock instead of being shifted: the kernel counts
 * times() in jiffies, from a point that depends on how it was configured, and moves them with
 * no time namespace, so no offset of the page says how two hosts' counts differ.
 */
#include <sys/sysinfo.h>
#include <sys/times.h>

#include "shim.h"

NEXT(sysinfo);
NEXT(timespec_get);
NEXT(times);

#ifndef TIME_MONOTONIC /* of C23; a libc that does not know it refuses it itself */
#define TIME_MONOTONIC 2
#endif

#define TICKS_PER_SEC 100 /* USER_HZ, part of the kernel's ABI on x86-64 */

clock_t times(struct tms *cpu)
{
	struct timespec now;

	attach_first();
	next_times(cpu);
	cpu_add_times(cpu);
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * TICKS_PER_SEC + now.tv_nsec / (TS_NSEC_PER_SEC / TICKS_PER_SEC);
}

int sysinfo(struct sysinfo *info)
{
	struct timespec now;

	attach_first();
	if (next_sysinfo(info))
		return -1;
	clock_gettime(CLOCK_BOOTTIME, &now);
	info->uptime = now.tv_sec + (now.tv_nsec != 0); /* rounded as do_sysinfo() does */
	return 0;
}

int timespec_get(struct timespec *ts, int base)
{
	int known;

	attach_first();
	known = next_timespec_get(ts, base);
	if (known && base == TIME_MONOTONIC)
		clock_gettime(CLOCK_MONOTONIC, ts);
	return known;
}
