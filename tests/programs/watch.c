// SPDX-License-Identifier: MIT
/*
 * watch.c - reads clocks as fast as it can until SIGTERM, and reports what they did.
 *
 *     watch THREADS
 *
 * Prints a JSON object a thread and, in it, for each clock:
 *   backward    readings below one that this or another thread had before
 *   gained_ns   the most that the clock gained on CLOCK_REALTIME from one reading to the next: a
 * jump lost_ns     what it lost on CLOCK_REALTIME in all: the time that it stood still
 *
 * CLOCK_REALTIME is the yardstick because no migration and no shim touches it, and because a
 * thread that merely did not run sees both clocks advance.  A reading counts for it only if it
 * was taken between two of CLOCK_REALTIME that are a moment apart.
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CLOCKS = 4, MOMENT_NS = 50000 };

static const clockid_t id[CLOCKS] = { CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE,
				      CLOCK_BOOTTIME };
static const char *const name[CLOCKS] = { "monotonic", "raw", "coarse", "boottime" };

static _Atomic int64_t seen[CLOCKS]; /* the highest that any thread has read */
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

/* Reads a clock; returns true if it went back. */
static int read_clock(int i, int64_t *now)
{
	int64_t before = atomic_load(&seen[i]), most = before;

	*now = read_ns(id[i]);
	while (most < *now && !atomic_compare_exchange_weak(&seen[i], &most, *now))
		;
	return *now < before;
}

/* How far a clock is ahead of CLOCK_REALTIME. */
static int64_t read_lead(int i, long *backward)
{
	int64_t before, now, after;

	do {
		before = read_ns(CLOCK_REALTIME);
		*backward += read_clock(i, &now);
		after = read_ns(CLOCK_REALTIME);
	} while (after - before > MOMENT_NS);
	return now - before;
}

static void *watch(void *unused)
{
	static pthread_mutex_t printing = PTHREAD_MUTEX_INITIALIZER;
	int64_t first[CLOCKS], last[CLOCKS], gained[CLOCKS] = { 0 };
	long backward[CLOCKS] = { 0 }, reads = 0;

	for (int i = 0; i < CLOCKS; i++)
		first[i] = last[i] = read_lead(i, &backward[i]);
	for (; !enough; reads++) {
		for (int i = 0; i < CLOCKS; i++) {
			int64_t lead = read_lead(i, &backward[i]);

			if (lead - last[i] > gained[i])
				gained[i] = lead - last[i];
			last[i] = lead;
		}
	}

	pthread_mutex_lock(&printing);
	printf("{\"reads\": %ld", reads);
	for (int i = 0; i < CLOCKS; i++)
		printf(", \"%s\": {\"backward\": %ld, \"gained_ns\": %ld, \"lost_ns\": %ld}",
		       name[i], backward[i], (long)gained[i], (long)(first[i] - last[i]));
	printf("}\n");
	fflush(stdout);
	pthread_mutex_unlock(&printing);
	return unused;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t thread[64];

	signal(SIGTERM, stop);
	for (int i = 0; i < threads; i++)
		pthread_create(&thread[i], NULL, watch, NULL);
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	return 0;
}
