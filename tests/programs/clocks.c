// SPDX-License-Identifier: MIT
/*
 * clocks.c - prints one reading of each clock, a line each: its number and nanoseconds.
 */
#include <stdio.h>
#include <time.h>

int main(void)
{
	static const clockid_t clock[] = { CLOCK_MONOTONIC,        CLOCK_MONOTONIC_RAW,
					   CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME,
					   CLOCK_BOOTTIME_ALARM,   CLOCK_REALTIME,
					   CLOCK_REALTIME_COARSE };

	for (size_t i = 0; i < sizeof(clock) / sizeof(clock[0]); i++) {
		struct timespec ts;

		if (!clock_gettime(clock[i], &ts))
			printf("%d %lld\n", clock[i], ts.tv_sec * 1000000000ll + ts.tv_nsec);
	}
	return 0;
}
