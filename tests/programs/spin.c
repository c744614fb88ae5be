// SPDX-License-Identifier: MIT
/*
 * spin.c - reads CLOCK_MONOTONIC for some time and tells how many readings were mixed.
 *
 *     spin MILLISECONDS SEC NSEC [first]
 *
 * Two epochs are published in turn: one without an offset, one with SEC, NSEC.  A reading
 * belongs to one of them if, less that offset, it lies between two readings of the kernel
 * clock; each half of a mixed offset is off by far more than that.  With "first" it ends
 * at the first mixed reading.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>

#define NSEC 1000000000ll

static long long kernel_ns(void)
{
	struct timespec ts;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(SYS_clock_gettime), "D"(CLOCK_MONOTONIC), "S"(&ts)
			 : "rcx", "r11", "memory");
	return ts.tv_sec * NSEC + ts.tv_nsec;
}

int main(int argc, char **argv)
{
	long long end, offset, readings[2] = { 0 }, mixed = 0;
	bool first = argc > 4;

	if (argc < 4)
		return 2;
	end = kernel_ns() + atoll(argv[1]) * 1000000;
	offset = atoll(argv[2]) * NSEC + atoll(argv[3]);

	for (long long before = kernel_ns(); before < end; before = kernel_ns()) {
		struct timespec ts[32];
		long long after;

		for (size_t i = 0; i < sizeof(ts) / sizeof(ts[0]); i++)
			clock_gettime(CLOCK_MONOTONIC, &ts[i]);
		after = kernel_ns();
		for (size_t i = 0; i < sizeof(ts) / sizeof(ts[0]); i++) {
			long long ns = ts[i].tv_sec * NSEC + ts[i].tv_nsec;

			if (ns >= before && ns <= after)
				readings[0]++;
			else if (ns - offset >= before && ns - offset <= after)
				readings[1]++;
			else
				mixed++;
		}
		if (mixed && first)
			break;
	}
	printf("%lld %lld %lld\n", readings[0], readings[1], mixed);
	return 0;
}
