// SPDX-License-Identifier: MIT
/*
 * relative.c - sits in every kind of relative wait at once and reports how each ended.
 *
 *     relative MILLISECONDS [SIGNAL]
 *
 * Waits so long, or until SIGUSR1, for which there is a handler, after SIGNAL milliseconds.  Waits
 * without a time-out are ended by what they wait for.  Prints a JSON object a wait: how long it
 * took by its own clock and by CLOCK_REALTIME, which no migration and no shim touches, what
 * it returned, and what it said was left (-1 if it says no such thing).
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

enum { NS_PER_MS = 1000000, NS_PER_S = 1000000000 };

static long milliseconds;

static int64_t to_ns(struct timespec ts)
{
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static struct timespec to_timespec(int64_t ns)
{
	return (struct timespec){ ns / NS_PER_S, ns % NS_PER_S };
}

static int64_t read_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return to_ns(ts);
}

/* Each returns 0 or an error number, and replaces the span by what is left, or by { -1, 0 }. */

static int error_of(int result)
{
	return result < 0 ? errno : 0;
}

static int nano(struct timespec *span)
{
	struct timespec left = { -1, 0 };
	int err = error_of(nanosleep(span, &left));

	*span = left;
	return err;
}

static int clock_nano(clockid_t clock, struct timespec *span)
{
	struct timespec left = { -1, 0 };
	int err = clock_nanosleep(clock, 0, span, &left);

	*span = left;
	return err;
}

static int clock_nano_monotonic(struct timespec *span)
{
	return clock_nano(CLOCK_MONOTONIC, span);
}

static int clock_nano_boottime(struct timespec *span)
{
	return clock_nano(CLOCK_BOOTTIME, span);
}

static int clock_nano_realtime(struct timespec *span)
{
	return clock_nano(CLOCK_REALTIME, span);
}

static int micro(struct timespec *span)
{
	int err = error_of(usleep(to_ns(*span) / 1000));

	*span = (struct timespec){ -1, 0 };
	return err;
}

static int seconds(struct timespec *span)
{
	int left = (int)sleep(span->tv_sec);

	*span = (struct timespec){ left ? left : -1, 0 };
	return left ? EINTR : 0;
}

static int c11(struct timespec *span)
{
	struct timespec left = { -1, 0 };
	int result = thrd_sleep(span, &left);

	*span = left;
	return result == -1 ? EINTR : -result;
}

static const struct wait {
	const char *name;
	int (*call)(struct timespec *);
	int expected;
	clockid_t clock;
} waits[] = {
	{ "nanosleep", nano, 0, CLOCK_MONOTONIC },
	{ "clock_nanosleep MONOTONIC", clock_nano_monotonic, 0, CLOCK_MONOTONIC },
	{ "clock_nanosleep BOOTTIME", clock_nano_boottime, 0, CLOCK_BOOTTIME },
	{ "clock_nanosleep REALTIME", clock_nano_realtime, 0, CLOCK_MONOTONIC },
	{ "usleep", micro, 0, CLOCK_MONOTONIC },
	{ "sleep", seconds, 0, CLOCK_MONOTONIC },
	{ "thrd_sleep", c11, 0, CLOCK_MONOTONIC },
};
enum { WAITS = sizeof(waits) / sizeof(waits[0]) };

static pthread_barrier_t begun;

static void *perform(void *arg)
{
	const struct wait *wait = arg;
	int64_t asked = milliseconds * NS_PER_MS, real, start, took;
	struct timespec span = to_timespec(asked);
	int err;

	pthread_barrier_wait(&begun);
	real = read_ns(CLOCK_REALTIME);
	start = read_ns(wait->clock);
	err = wait->call(&span);
	took = read_ns(wait->clock) - start;
	real = read_ns(CLOCK_REALTIME) - real;

	flockfile(stdout);
	printf("{\"wait\": \"%s\", \"boottime\": %s, \"returned\": \"%s\", \"expected\": \"%s\", "
	       "\"asked_ns\": %ld, \"took_ns\": %ld, \"real_ns\": %ld, \"left_ns\": %ld}\n",
	       wait->name, wait->clock == CLOCK_BOOTTIME ? "true" : "false", strerrorname_np(err),
	       strerrorname_np(wait->expected), asked, took, real,
	       span.tv_sec < 0 ? -1 : to_ns(span));
	fflush(stdout);
	funlockfile(stdout);
	return NULL;
}

static void handler(int signal)
{
	(void)signal;
}

static void sleep_until(int64_t deadline)
{
	struct timespec until = to_timespec(deadline);

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL))
		;
}

int main(int argc, char **argv)
{
	long signal_after = argc > 2 ? atol(argv[2]) : 0;
	struct sigaction action = { .sa_handler = handler };
	pthread_t thread[WAITS];
	int64_t start;

	milliseconds = argc > 1 ? atol(argv[1]) : 1000;
	sigaction(SIGUSR1, &action, NULL);
	pthread_barrier_init(&begun, NULL, WAITS + 1);
	for (int i = 0; i < WAITS; i++)
		pthread_create(&thread[i], NULL, perform, (void *)&waits[i]);
	pthread_barrier_wait(&begun);
	start = read_ns(CLOCK_MONOTONIC);
	if (signal_after) {
		sleep_until(start + signal_after * NS_PER_MS);
		for (int i = 0; i < WAITS; i++)
			pthread_kill(thread[i], SIGUSR1);
	}
	for (int i = 0; i < WAITS; i++)
		pthread_join(thread[i], NULL);
	return 0;
}
