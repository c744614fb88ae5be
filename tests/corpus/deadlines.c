// SPDX-License-Identifier: MIT
/*
 * deadlines.c - waits until an absolute time.  What they wait for never comes.
 */
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "beats.h"

#ifndef FUTEX_LOCK_PI2 /* Linux 5.14 */
#define FUTEX_LOCK_PI2 13
#endif
#ifndef SYS_futex_waitv /* Linux 5.16 */
#define SYS_futex_waitv 449
#endif
#ifndef FUTEX_32
#define FUTEX_32 2
#endif

static pthread_mutex_t taken = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t written = PTHREAD_RWLOCK_INITIALIZER;
static pthread_t holder;
static atomic_uint owned; /* a PI futex */

static void *hold(void *unused)
{
	pthread_mutex_lock(&taken);
	pthread_rwlock_wrlock(&written);
	atomic_store(&owned, gettid());
	for (;;)
		pause();
	return unused;
}

static void prepare(void)
{
	pthread_create(&holder, NULL, hold, NULL);
	while (!atomic_load(&owned))
		doze(NS_PER_MS);
}

static int nanosleep_until(struct asked *asked)
{
	return clock_nanosleep(asked->clock, TIMER_ABSTIME, &asked->time, NULL);
}

static int cond_timedwait(struct asked *asked)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_condattr_t attr;
	pthread_cond_t cond;
	int err;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, asked->clock);
	pthread_cond_init(&cond, &attr);
	pthread_mutex_lock(&mutex);
	do
		err = pthread_cond_timedwait(&cond, &mutex, &asked->time);
	while (!err); /* spurious wake-ups are allowed */
	pthread_mutex_unlock(&mutex);
	return err;
}

static int cond_clockwait(struct asked *asked)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
	int err;

	pthread_mutex_lock(&mutex);
	do
		err = pthread_cond_clockwait(&cond, &mutex, asked->clock, &asked->time);
	while (!err);
	pthread_mutex_unlock(&mutex);
	return err;
}

static int semaphore_clock(struct asked *asked)
{
	sem_t sem;

	sem_init(&sem, 0, 0);
	return error_of(sem_clockwait(&sem, asked->clock, &asked->time));
}

static int semaphore_timed(struct asked *asked)
{
	sem_t sem;

	sem_init(&sem, 0, 0);
	return error_of(sem_timedwait(&sem, &asked->time));
}

static int mutex_clock(struct asked *asked)
{
	return pthread_mutex_clocklock(&taken, asked->clock, &asked->time);
}

static int mutex_timed(struct asked *asked)
{
	return pthread_mutex_timedlock(&taken, &asked->time);
}

static int read_lock_clock(struct asked *asked)
{
	return pthread_rwlock_clockrdlock(&written, asked->clock, &asked->time);
}

static int read_lock_timed(struct asked *asked)
{
	return pthread_rwlock_timedrdlock(&written, &asked->time);
}

static int write_lock_clock(struct asked *asked)
{
	return pthread_rwlock_clockwrlock(&written, asked->clock, &asked->time);
}

static int write_lock_timed(struct asked *asked)
{
	return pthread_rwlock_timedwrlock(&written, &asked->time);
}

static int join(struct asked *asked)
{
	return pthread_clockjoin_np(holder, NULL, asked->clock, &asked->time);
}

/* The same by syscall(), as Rust's std and libstdc++'s futures do it. */
static int raw_nanosleep(struct asked *asked)
{
	return error_of(
		syscall(SYS_clock_nanosleep, asked->clock, TIMER_ABSTIME, &asked->time, NULL));
}

/* A span, for once. */
static int raw_wait(struct asked *asked)
{
	uint32_t word = 0;

	return error_of(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &asked->time));
}

static int raw_wait_bitset(struct asked *asked)
{
	uint32_t word = 0;

	return error_of(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &asked->time, NULL,
				FUTEX_BITSET_MATCH_ANY));
}

static int raw_lock_pi2(struct asked *asked)
{
	return error_of(syscall(SYS_futex, &owned, FUTEX_LOCK_PI2 | FUTEX_PRIVATE_FLAG, 0,
				&asked->time, NULL, 0));
}

static int raw_wait_requeue_pi(struct asked *asked)
{
	uint32_t word = 0, target = 0;

	return error_of(syscall(SYS_futex, &word, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 0, &asked->time,
				&target, 0));
}

static int raw_waitv(struct asked *asked)
{
	uint32_t word = 0;
	struct {
		uint64_t val, uaddr;
		uint32_t flags, reserved;
	} waiter = { 0, (uintptr_t)&word, FUTEX_32, 0 };

	return error_of(syscall(SYS_futex_waitv, &waiter, 1, 0, &asked->time, asked->clock));
}

static const struct wait waits[] = {
	{ .name = "clock_nanosleep TIMER_ABSTIME MONOTONIC",
	  .clock = CLOCK_MONOTONIC,
	  .call = nanosleep_until,
	  .until = true,
	  .interruptible = true },
	{ .name = "clock_nanosleep TIMER_ABSTIME BOOTTIME",
	  .clock = CLOCK_BOOTTIME,
	  .call = nanosleep_until,
	  .until = true,
	  .interruptible = true },
	{ .name = "clock_nanosleep TIMER_ABSTIME REALTIME",
	  .clock = CLOCK_REALTIME,
	  .call = nanosleep_until,
	  .until = true,
	  .interruptible = true },
	{ .name = "pthread_cond_timedwait MONOTONIC",
	  .clock = CLOCK_MONOTONIC,
	  .call = cond_timedwait,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "pthread_cond_timedwait REALTIME",
	  .clock = CLOCK_REALTIME,
	  .call = cond_timedwait,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "pthread_cond_clockwait",
	  .clock = CLOCK_MONOTONIC,
	  .call = cond_clockwait,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "sem_clockwait",
	  .clock = CLOCK_MONOTONIC,
	  .call = semaphore_clock,
	  .until = true,
	  .expected = ETIMEDOUT,
	  .interruptible = true },
	{ .name = "sem_timedwait",
	  .clock = CLOCK_REALTIME,
	  .call = semaphore_timed,
	  .until = true,
	  .expected = ETIMEDOUT,
	  .interruptible = true },
	{ .name = "pthread_mutex_clocklock",
	  .clock = CLOCK_MONOTONIC,
	  .call = mutex_clock,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "pthread_mutex_timedlock",
	  .clock = CLOCK_REALTIME,
	  .call = mutex_timed,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "pthread_rwlock_clockrdlock",
	  .clock = CLOCK_MONOTONIC,
	  .call = read_lock_clock,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "pthread_rwlock_timedrdlock",
	  .clock = CLOCK_REALTIME,
	  .call = read_lock_timed,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "pthread_rwlock_clockwrlock",
	  .clock = CLOCK_MONOTONIC,
	  .call = write_lock_clock,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "pthread_rwlock_timedwrlock",
	  .clock = CLOCK_REALTIME,
	  .call = write_lock_timed,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "pthread_clockjoin_np",
	  .clock = CLOCK_MONOTONIC,
	  .call = join,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "syscall() clock_nanosleep",
	  .clock = CLOCK_MONOTONIC,
	  .call = raw_nanosleep,
	  .until = true,
	  .interruptible = true },
	{ .name = "syscall() futex WAIT",
	  .clock = CLOCK_MONOTONIC,
	  .call = raw_wait,
	  .expected = ETIMEDOUT,
	  .interruptible = true },
	{ .name = "syscall() futex WAIT_BITSET",
	  .clock = CLOCK_MONOTONIC,
	  .call = raw_wait_bitset,
	  .until = true,
	  .expected = ETIMEDOUT,
	  .interruptible = true },
	{ .name = "syscall() futex LOCK_PI2",
	  .clock = CLOCK_MONOTONIC,
	  .call = raw_lock_pi2,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "syscall() futex WAIT_REQUEUE_PI",
	  .clock = CLOCK_MONOTONIC,
	  .call = raw_wait_requeue_pi,
	  .until = true,
	  .expected = ETIMEDOUT },
	{ .name = "syscall() futex_waitv",
	  .clock = CLOCK_MONOTONIC,
	  .call = raw_waitv,
	  .until = true,
	  .expected = ETIMEDOUT,
	  .interruptible = true },
	{ 0 },
};

const struct family deadlines = { .name = "deadlines", .prepare = prepare, .waits = waits };
