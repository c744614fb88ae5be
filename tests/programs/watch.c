// SPDX-License-Identifier: MIT
/*
 * watch.c - reads MONOTONIC, RAW, COARSE and BOOTTIME in a loop for as long as it is told and
 * reports, for each, how often it went back and the largest step between two readings.
 *
 *     watch THREADS SECONDS-OF-REALTIME
 *
 * Prints one JSON object a thread.  Every thread keeps its own history, so that it says nothing
 * about other threads; readings of different threads are compared through a shared maximum
 * that is loaded before the clock is read.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CLOCKS = 4 };

static const clockid_t id[CLOCKS] = { CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE,
				      CLOCK_BOOTTIME };
static const char *const name[CLOCKS] = { "monotonic", "raw", "coarse", "boottime" };

static _Atomic int64_t seen[CLOCKS]; /* the highest that any thread has read */
static time_t end;

static int64_t read_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void *watch(void *unused)
{
	int64_t last[CLOCKS], step[CLOCKS] = { 0 };
	long back[CLOCKS] = { 0 }, reads = 0;
	static pthread_mutex_t printing = PTHREAD_MUTEX_INITIALIZER;

	for (int i = 0; i < CLOCKS; i++)
		last[i] = read_ns(id[i]);
	for (; reads % 1024 || time(NULL) < end; reads++) {
		for (int i = 0; i < CLOCKS; i++) {
			int64_t before = atomic_load(&seen[i]), now = read_ns(id[i]);

			back[i] += now < last[i] || now < before;
			if (now - last[i] > step[i])
				step[i] = now - last[i];
			last[i] = now;
			while (before < now &&
			       !atomic_compare_exchange_weak(&seen[i], &before, now))
				;
		}
	}

	pthread_mutex_lock(&printing);
	printf("{\"reads\": %ld", reads);
	for (int i = 0; i < CLOCKS; i++)
		printf(", \"%s\": {\"backward\": %ld, \"largest_step_ns\": %ld}", name[i], back[i],
		       (long)step[i]);
	printf("}\n");
	fflush(stdout);
	pthread_mutex_unlock(&printing);
	return unused;
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 1;
	pthread_t thread[64];

	end = time(NULL) + (argc > 2 ? atoi(argv[2]) : 1);
	for (int i = 0; i < threads; i++)
		pthread_create(&thread[i], NULL, watch, NULL);
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	return 0;
}
