// SPDX-License-Identifier: MIT
/*
 * uptime.c - compares what tells the time since boot with the clock that it belongs to.
 *
 * Until SIGTERM; then prints, as a JSON object, the most that they were apart.  times() counts from
 * an arbitrary point, so there it is the change since the first reading.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sysinfo.h>
#include <sys/times.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t enough;

static void stop(int signal)
{
	enough = signal;
}

static int64_t read_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* How far a value is outside of an interval. */
static int64_t outside(int64_t value, int64_t from, int64_t to)
{
	return value < from ? from - value : value > to ? value - to : 0;
}

int main(void)
{
	int64_t lead = 0, uptime_off = 0, times_off = 0;

	signal(SIGTERM, stop);
	for (long i = 0; !enough; i++) {
		int64_t before = read_ns(CLOCK_BOOTTIME), off, ticks;
		struct sysinfo info;
		struct tms cpu;

		sysinfo(&info);
		off = outside(info.uptime, before / 1000000000,
			      read_ns(CLOCK_BOOTTIME) / 1000000000 + 1);
		uptime_off = off > uptime_off ? off : uptime_off;

		before = read_ns(CLOCK_MONOTONIC) / 10000000;
		ticks = times(&cpu);
		if (!i)
			lead = ticks - before;
		/* natively, the tick that counts is not the one in which MONOTONIC is full */
		off = outside(ticks - lead, before - 2, read_ns(CLOCK_MONOTONIC) / 10000000 + 2);
		times_off = off > times_off ? off : times_off;
		usleep(100);
	}
	printf("{\"uptime_s\": %ld, \"times_ticks\": %ld}\n", (long)uptime_off, (long)times_off);
	return 0;
}
