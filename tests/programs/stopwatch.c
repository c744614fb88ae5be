// SPDX-License-Identifier: MIT
/*
 * stopwatch.c - measures how fast the TSC counts once, and trusts that for ever.
 *
 * So do DPDK, fio and many clocks of games.  Then it takes the time of one second after the other,
 * by CLOCK_MONOTONIC and by its own clock, and prints a JSON object for each: how far they differ,
 * in parts per million, and whether the TSC went back.  Reads the TSC as compilers make it, so it
 * relies on the shim to rewrite it.
 */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

enum { NS = 1000000000, MOMENT_NS = 20000, ATTEMPTS = 1000 };

struct moment {
	int64_t ns;
	uint64_t ticks;
};

static int64_t monotonic(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS + ts.tv_nsec;
}

/* Both clocks, read within a moment of each other; the best of many if there is none. */
static struct moment look(void)
{
	struct moment best = { 0 };
	int64_t least = INT64_MAX;

	for (int i = 0; i < ATTEMPTS && least > MOMENT_NS; i++) {
		int64_t before = monotonic();
		uint64_t ticks = __rdtsc();
		int64_t after = monotonic();

		if (after - before < least) {
			least = after - before;
			best = (struct moment){ before + least / 2, ticks };
		}
	}
	return best;
}

static void pause_for(int64_t ns)
{
	struct timespec span = { ns / NS, ns % NS };

	nanosleep(&span, NULL);
}

int main(void)
{
	struct moment last = look(), now;
	double per_ns;

	pause_for(NS);
	now = look();
	per_ns = (double)(now.ticks - last.ticks) / (double)(now.ns - last.ns);
	for (;;) {
		last = now;
		pause_for(NS);
		now = look();
		printf("{\"mhz\": %.3f, \"off_ppm\": %.1f, \"backward\": %s}\n", per_ns * 1e3,
		       ((double)(now.ticks - last.ticks) / per_ns / (double)(now.ns - last.ns) -
			1) * 1e6,
		       now.ticks < last.ticks ? "true" : "false");
		fflush(stdout);
	}
}
