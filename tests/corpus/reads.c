// SPDX-License-Identifier: MIT
/*
 * reads.c - what tells the time, by whatever function.
 */
#include <sys/sysinfo.h>
#include <sys/times.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "beats.h"

enum { TICK_NS = 10 * NS_PER_MS }; /* USER_HZ is 100 on x86-64 */
enum { COARSE_LATE_NS = 50 * NS_PER_MS }; /* the kernel's tick waits for a CPU to run on */

#ifndef TIME_MONOTONIC /* of C23 */
#define TIME_MONOTONIC 2
#endif

static int64_t by_syscall(clockid_t clock)
{
	struct timespec ts;

	return syscall(SYS_clock_gettime, clock, &ts) ? ABSENT : to_ns(ts);
}

static int64_t by_timespec_get(clockid_t clock)
{
	struct timespec ts;

	(void)clock;
	return timespec_get(&ts, TIME_MONOTONIC) ? to_ns(ts) : ABSENT;
}

static int64_t by_times(clockid_t clock)
{
	struct tms cpu;

	(void)clock;
	return times(&cpu) * TICK_NS;
}

/* In whole seconds, and the one that has begun counts. */
static int64_t by_sysinfo(clockid_t clock)
{
	struct sysinfo info;

	(void)clock;
	sysinfo(&info);
	return info.uptime * NS_PER_S;
}

static int resolution(void)
{
	struct timespec ts;

	return clock_getres(CLOCK_MONOTONIC, &ts) || ts.tv_sec || ts.tv_nsec != 1;
}

static const struct reading readings[] = {
	{ "clock_gettime MONOTONIC", CLOCK_MONOTONIC, read_ns, 0, 0, false },
	{ "clock_gettime MONOTONIC_RAW", CLOCK_MONOTONIC_RAW, read_ns, 0, 0, false },
	{ "clock_gettime MONOTONIC_COARSE", CLOCK_MONOTONIC_COARSE, read_ns, 0, COARSE_LATE_NS,
	  false },
	{ "clock_gettime BOOTTIME", CLOCK_BOOTTIME, read_ns, 0, 0, false },
	{ "clock_gettime BOOTTIME_ALARM", CLOCK_BOOTTIME_ALARM, read_ns, 0, 0, false },
	{ "clock_gettime REALTIME", CLOCK_REALTIME, read_ns, 0, 0, false },
	{ "clock_gettime TAI", CLOCK_TAI, read_ns, 0, 0, false },
	{ "syscall() clock_gettime", CLOCK_MONOTONIC, by_syscall, 0, 0, false },
	{ "timespec_get TIME_MONOTONIC", CLOCK_MONOTONIC, by_timespec_get, 0, 0, false },
	{ "times()", CLOCK_MONOTONIC, by_times, TICK_NS, COARSE_LATE_NS, false },
	{ "sysinfo().uptime", CLOCK_BOOTTIME, by_sysinfo, NS_PER_S, 0, false },
	{ 0 },
};

static const struct check checks[] = { { "clock_getres", resolution }, { 0 } };

const struct family reads = { .name = "reads", .readings = readings, .checks = checks };
