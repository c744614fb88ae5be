// SPDX-License-Identifier: MIT
/*
 * waits.c - sits in every kind of absolute wait at once and reports when each ended.
 *
 *     waits MILLISECONDS
 *
 * Prints a JSON object a wait: how long it took by its own clock and by CLOCK_REALTIME, which no
 * migration and no shim touches, and what the call returned.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static long milliseconds;

static int64_t read_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int nanosleep_monotonic(const struct timespec *until)
{
	return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, until, NULL);
}

static int nanosleep_boottime(const struct timespec *until)
{
	return clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, until, NULL);
}

static int cond_timedwait(const struct timespec *until)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_condattr_t attr;
	pthread_cond_t cond;
	int err;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&cond, &attr);
	pthread_mutex_lock(&mutex);
	do
		err = pthread_cond_timedwait(&cond, &mutex, until);
	while (!err); /* spurious wake-ups are allowed */
	pthread_mutex_unlock(&mutex);
	return err;
}

static int cond_clockwait(const struct timespec *until)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
	int err;

	pthread_mutex_lock(&mutex);
	do
		err = pthread_cond_clockwait(&cond, &mutex, CLOCK_MONOTONIC, until);
	while (!err);
	pthread_mutex_unlock(&mutex);
	return err;
}

static int semaphore(const struct timespec *until)
{
	sem_t sem;

	sem_init(&sem, 0, 0);
	return sem_clockwait(&sem, CLOCK_MONOTONIC, until) ? errno : 0;
}

static pthread_mutex_t taken = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t written = PTHREAD_RWLOCK_INITIALIZER;
static pthread_t forever;

static int mutex(const struct timespec *until)
{
	return pthread_mutex_clocklock(&taken, CLOCK_MONOTONIC, until);
}

static int read_lock(const struct timespec *until)
{
	return pthread_rwlock_clockrdlock(&written, CLOCK_MONOTONIC, until);
}

static int write_lock(const struct timespec *until)
{
	return pthread_rwlock_clockwrlock(&written, CLOCK_MONOTONIC, until);
}

static int join(const struct timespec *until)
{
	return pthread_clockjoin_np(forever, NULL, CLOCK_MONOTONIC, until);
}

static const struct wait {
	const char *name;
	clockid_t clock;
	int (*call)(const struct timespec *);
	int expected;
} waits[] = {
	{ "clock_nanosleep MONOTONIC", CLOCK_MONOTONIC, nanosleep_monotonic, 0 },
	{ "clock_nanosleep BOOTTIME", CLOCK_BOOTTIME, nanosleep_boottime, 0 },
	{ "pthread_cond_timedwait", CLOCK_MONOTONIC, cond_timedwait, ETIMEDOUT },
	{ "pthread_cond_clockwait", CLOCK_MONOTONIC, cond_clockwait, ETIMEDOUT },
	{ "sem_clockwait", CLOCK_MONOTONIC, semaphore, ETIMEDOUT },
	{ "pthread_mutex_clocklock", CLOCK_MONOTONIC, mutex, ETIMEDOUT },
	{ "pthread_rwlock_clockrdlock", CLOCK_MONOTONIC, read_lock, ETIMEDOUT },
	{ "pthread_rwlock_clockwrlock", CLOCK_MONOTONIC, write_lock, ETIMEDOUT },
	{ "pthread_clockjoin_np", CLOCK_MONOTONIC, join, ETIMEDOUT },
};
enum { WAITS = sizeof(waits) / sizeof(waits[0]) };

static void *perform(void *arg)
{
	const struct wait *wait = arg;
	int64_t real = read_ns(CLOCK_REALTIME), start = read_ns(wait->clock);
	int64_t deadline = start + milliseconds * 1000000;
	struct timespec until = { deadline / 1000000000, deadline % 1000000000 };
	int err = wait->call(&until);
	int64_t took = read_ns(wait->clock) - start;

	real = read_ns(CLOCK_REALTIME) - real;
	flockfile(stdout);
	printf("{\"wait\": \"%s\", \"boottime\": %s, \"returned\": \"%s\", \"asked_ns\": %ld, "
	       "\"took_ns\": %ld, \"real_ns\": %ld}\n",
	       wait->name, wait->clock == CLOCK_BOOTTIME ? "true" : "false",
	       err == wait->expected ? "as expected" : strerror(err), milliseconds * 1000000,
	       (long)took, (long)real);
	fflush(stdout);
	funlockfile(stdout);
	return NULL;
}

static void *sleep_forever(void *unused)
{
	for (;;)
		pause();
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread[WAITS];

	milliseconds = argc > 1 ? atol(argv[1]) : 1000;
	pthread_mutex_lock(&taken);
	pthread_rwlock_wrlock(&written);
	pthread_create(&forever, NULL, sleep_forever, NULL);
	for (int i = 0; i < WAITS; i++)
		pthread_create(&thread[i], NULL, perform, (void *)&waits[i]);
	for (int i = 0; i < WAITS; i++)
		pthread_join(thread[i], NULL);
	return 0;
}
