// SPDX-License-Identifier: MIT
/*
 * waits.c - sits in every kind of absolute wait at once and reports when each ended.
 *
 *     waits MILLISECONDS [timers]
 *
 * With "timers", POSIX timers are among them.  Prints a JSON object a wait: how long it took by its
 * own clock and by CLOCK_REALTIME, which no migration and no shim touches, and what the call
 * returned.
 */
#include <errno.h>
#include <pthread.h>
#include <linux/futex.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
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

/* A timer rings once, at the time; the wait for it itself has no deadline. */
static int ring_timerfd(clockid_t clock, const struct timespec *until)
{
	struct itimerspec setting = { .it_value = *until };
	int fd = timerfd_create(clock, TFD_CLOEXEC);
	uint64_t expirations = 0;

	if (timerfd_settime(fd, TFD_TIMER_ABSTIME, &setting, NULL))
		return errno;
	if (read(fd, &expirations, sizeof(expirations)) < 0)
		return errno;
	close(fd);
	return expirations == 1 ? 0 : ERANGE;
}

static int timerfd_monotonic(const struct timespec *until)
{
	return ring_timerfd(CLOCK_MONOTONIC, until);
}

static int timerfd_boottime(const struct timespec *until)
{
	return ring_timerfd(CLOCK_BOOTTIME, until);
}

static int ring_timer(clockid_t clock, int signal, const struct timespec *until)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = signal };
	struct itimerspec setting = { .it_value = *until };
	sigset_t set;
	timer_t id;
	int caught;

	sigemptyset(&set);
	sigaddset(&set, signal);
	if (timer_create(clock, &event, &id) || timer_settime(id, TIMER_ABSTIME, &setting, NULL))
		return errno;
	while (sigwait(&set, &caught))
		; /* EINTR: CRIU's doing */
	timer_delete(id);
	return 0;
}

static int timer_monotonic(const struct timespec *until)
{
	return ring_timer(CLOCK_MONOTONIC, SIGRTMIN + 1, until);
}

static int timer_boottime(const struct timespec *until)
{
	return ring_timer(CLOCK_BOOTTIME, SIGRTMIN + 2, until);
}

/* The same by syscall(), as Rust's std and libstdc++'s futures do it. */
static int raw_nanosleep(const struct timespec *until)
{
	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, until, NULL) ? errno
											 : 0;
}

static int raw_futex_bitset(const struct timespec *until)
{
	uint32_t word = 0;

	return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, until, NULL,
		       FUTEX_BITSET_MATCH_ANY)
		       ? errno
		       : 0;
}

static int raw_futex_relative(const struct timespec *unused)
{
	struct timespec timeout = { milliseconds / 1000, milliseconds % 1000 * 1000000 };
	uint32_t word = 0;

	(void)unused;
	return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &timeout) ? errno : 0;
}

static int raw_futex_waitv(const struct timespec *until)
{
	uint32_t word = 0;
	struct {
		uint64_t val, uaddr;
		uint32_t flags, reserved;
	} waiter = { 0, (uintptr_t)&word, 2 /* FUTEX_32 */, 0 };

	return syscall(449 /* futex_waitv */, &waiter, 1, 0, until, CLOCK_MONOTONIC) < 0 ? errno
											 : 0;
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
	{ "syscall clock_nanosleep", CLOCK_MONOTONIC, raw_nanosleep, 0 },
	{ "syscall futex WAIT_BITSET", CLOCK_MONOTONIC, raw_futex_bitset, ETIMEDOUT },
	{ "syscall futex WAIT", CLOCK_MONOTONIC, raw_futex_relative, ETIMEDOUT },
	{ "syscall futex_waitv", CLOCK_MONOTONIC, raw_futex_waitv, ETIMEDOUT },
	{ "timerfd MONOTONIC", CLOCK_MONOTONIC, timerfd_monotonic, 0 },
	{ "timerfd BOOTTIME", CLOCK_BOOTTIME, timerfd_boottime, 0 },
	{ "timer MONOTONIC", CLOCK_MONOTONIC, timer_monotonic, 0 },
	{ "timer BOOTTIME", CLOCK_BOOTTIME, timer_boottime, 0 },
};
enum { WAITS = sizeof(waits) / sizeof(waits[0]), POSIX_TIMERS = 2 };

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
	int count = argc > 2 ? WAITS : WAITS - POSIX_TIMERS;
	pthread_t thread[WAITS];
	sigset_t timers;

	milliseconds = argc > 1 ? atol(argv[1]) : 1000;
	sigemptyset(&timers);
	sigaddset(&timers, SIGRTMIN + 1);
	sigaddset(&timers, SIGRTMIN + 2);
	pthread_sigmask(SIG_BLOCK, &timers, NULL);
	pthread_mutex_lock(&taken);
	pthread_rwlock_wrlock(&written);
	pthread_create(&forever, NULL, sleep_forever, NULL);
	for (int i = 0; i < count; i++)
		pthread_create(&thread[i], NULL, perform, (void *)&waits[i]);
	for (int i = 0; i < count; i++)
		pthread_join(thread[i], NULL);
	return 0;
}
