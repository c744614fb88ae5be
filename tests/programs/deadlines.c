// SPDX-License-Identifier: MIT
/*
 * deadlines.c - every wait with an absolute deadline on a clock that is shifted.
 *
 *     deadlines            each until 50 ms ahead: name, error number, nanoseconds too late
 *     deadlines invalid    each with deadlines that make no sense: name, error numbers
 *
 * What is waited for never comes, so only the deadline ends a wait.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NSEC 1000000000

static pthread_mutex_t taken = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t written = PTHREAD_RWLOCK_INITIALIZER;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t monotonic_cond, cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_t holder;
static sem_t sem;

static void *hold(void *unused)
{
	pthread_mutex_lock(&taken);
	pthread_rwlock_wrlock(&written);
	pthread_barrier_wait(&barrier);
	for (;;)
		pause();
	return unused;
}

static int sleep_until(clockid_t clock, const struct timespec *until)
{
	return clock_nanosleep(clock, TIMER_ABSTIME, until, NULL);
}

static int cond_timedwait(clockid_t unused, const struct timespec *until)
{
	(void)unused;
	return pthread_cond_timedwait(&monotonic_cond, &mutex, until);
}

static int cond_clockwait(clockid_t clock, const struct timespec *until)
{
	return pthread_cond_clockwait(&cond, &mutex, clock, until);
}

static int sem_wait_until(clockid_t clock, const struct timespec *until)
{
	return sem_clockwait(&sem, clock, until) ? errno : 0;
}

static int mutex_clocklock(clockid_t clock, const struct timespec *until)
{
	return pthread_mutex_clocklock(&taken, clock, until);
}

static int rwlock_clockrdlock(clockid_t clock, const struct timespec *until)
{
	return pthread_rwlock_clockrdlock(&written, clock, until);
}

static int rwlock_clockwrlock(clockid_t clock, const struct timespec *until)
{
	return pthread_rwlock_clockwrlock(&written, clock, until);
}

static int clockjoin(clockid_t clock, const struct timespec *until)
{
	return pthread_clockjoin_np(holder, NULL, clock, until);
}

static const struct {
	const char *name;
	int (*wait)(clockid_t clock, const struct timespec *until);
	clockid_t clock;
} wait[] = {
	{ "clock_nanosleep", sleep_until, CLOCK_MONOTONIC },
	{ "clock_nanosleep(BOOTTIME)", sleep_until, CLOCK_BOOTTIME },
	{ "clock_nanosleep(REALTIME)", sleep_until, CLOCK_REALTIME },
	{ "pthread_cond_timedwait", cond_timedwait, CLOCK_MONOTONIC },
	{ "pthread_cond_clockwait", cond_clockwait, CLOCK_MONOTONIC },
	{ "pthread_cond_clockwait(REALTIME)", cond_clockwait, CLOCK_REALTIME },
	{ "sem_clockwait", sem_wait_until, CLOCK_MONOTONIC },
	{ "pthread_mutex_clocklock", mutex_clocklock, CLOCK_MONOTONIC },
	{ "pthread_rwlock_clockrdlock", rwlock_clockrdlock, CLOCK_MONOTONIC },
	{ "pthread_rwlock_clockwrlock", rwlock_clockwrlock, CLOCK_MONOTONIC },
	{ "pthread_clockjoin_np", clockjoin, CLOCK_MONOTONIC },
};
#define WAITS (sizeof(wait) / sizeof(wait[0]))

static void on_time(void)
{
	for (size_t i = 0; i < WAITS; i++) {
		struct timespec until, now;
		int err;

		clock_gettime(wait[i].clock, &until);
		until.tv_nsec += 50000000;
		until.tv_sec += until.tv_nsec / NSEC;
		until.tv_nsec %= NSEC;
		err = wait[i].wait(wait[i].clock, &until);
		clock_gettime(wait[i].clock, &now);
		printf("%s %d %lld\n", wait[i].name, err,
		       (now.tv_sec - until.tv_sec) * (long long)NSEC + now.tv_nsec - until.tv_nsec);
	}
}

static void invalid(void)
{
	static const struct timespec senseless[] = { { 0, -1 },         { 0, NSEC },     { -1, 0 },
						     { -1, NSEC },      { 1, 1l << 62 }, { 0, 0 },
						     { -(1l << 62), 0 } };
	const clockid_t other[] = { CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE, 99,
				    -1 };
	static const struct timespec past = { 0, 1 };

	for (size_t i = 0; i < WAITS; i++) {
		/* glibc 2.36 takes no error of the kernel for an end: it would spin */
		if (wait[i].wait == clockjoin)
			continue;
		printf("%s", wait[i].name);
		for (size_t n = 0; n < sizeof(senseless) / sizeof(senseless[0]); n++) {
			errno = 0;
			printf(" %d", wait[i].wait(wait[i].clock, &senseless[n]));
			printf("/%d", errno);
		}
		for (size_t n = 0; n < sizeof(other) / sizeof(other[0]); n++)
			printf(" %d", wait[i].wait(other[n], &past));
		printf("\n");
	}
}

int main(int argc, char **argv)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&monotonic_cond, &attr);
	sem_init(&sem, 0, 0);
	pthread_barrier_init(&barrier, NULL, 2);
	pthread_create(&holder, NULL, hold, NULL);
	pthread_barrier_wait(&barrier);
	pthread_mutex_lock(&mutex);

	if (argc > 1 && !strcmp(argv[1], "invalid"))
		invalid();
	else
		on_time();
	return 0;
}
