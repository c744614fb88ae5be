// SPDX-License-Identifier: MIT
/*
 * reads.c - what one clock read costs in this process; run by reads.py.
 *
 *     reads call|syscall
 *
 * A line for each clock: its number, the nanoseconds of one read in the fastest batch, and a
 * reading.  A batch is short enough to fit between two timer ticks, and is timed by
 * system calls that no preload can catch.
 */
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#define BATCHES 40
#define READS 1000

static inline long kernel_clock_gettime(clockid_t id, struct timespec *ts)
{
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(SYS_clock_gettime), "D"(id), "S"(ts)
			 : "rcx", "r11", "memory");
	return ret;
}

static double now(void)
{
	struct timespec ts;

	kernel_clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

int main(int argc, char **argv)
{
	static const clockid_t clock[] = { CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW,
					   CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_REALTIME };
	int by_syscall = argc > 1 && !strcmp(argv[1], "syscall");

	for (size_t i = 0; i < sizeof(clock) / sizeof(clock[0]); i++) {
		struct timespec ts;
		double best = 1e18;

		for (int batch = 0; batch < BATCHES; batch++) {
			double begin = now(), took;

			if (by_syscall) {
				for (int n = 0; n < READS; n++)
					kernel_clock_gettime(clock[i], &ts);
			} else {
				for (int n = 0; n < READS; n++)
					clock_gettime(clock[i], &ts);
			}
			took = (now() - begin) / READS;
			if (took < best)
				best = took;
		}
		printf("%d %.2f %lld\n", clock[i], best, ts.tv_sec * 1000000000ll + ts.tv_nsec);
	}
	return 0;
}
