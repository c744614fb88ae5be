// SPDX-License-Identifier: MIT
/*
 * wait.c - the calls of pthread.h and semaphore.h that wait until an absolute time on a clock
 * that is shifted.
 *
 * What need not wait goes to libc as a try, which costs a tenth of a slot; everything else
 * with its deadline in a slot.  That libc hands the pointer on to the
 * kernel, instead of a copy, is a property of nptl (__futex_abstimed_wait_common in
 * nptl/futex-internal.c); the migration tests would see it disappear.
 */
#include <errno.h>

#include "slot.h"
#include "timespec.h"

NEXT(pthread_clockjoin_np);
NEXT(pthread_cond_clockwait);
NEXT(pthread_cond_timedwait);
NEXT(pthread_mutex_clocklock);
NEXT(pthread_mutex_trylock);
NEXT(pthread_rwlock_clockrdlock);
NEXT(pthread_rwlock_clockwrlock);
NEXT(pthread_rwlock_tryrdlock);
NEXT(pthread_rwlock_trywrlock);
NEXT(sem_clockwait);
NEXT(sem_trywait);

/*
 * Evaluates call, which yields an error number, with deadline standing for what the kernel
 * is to be told instead of abstime, until it ends for a reason of its own.
 */
#define UNTIL(deadline, abstime, clock, call)                                                      \
	({                                                                                         \
		struct wait wait;                                                                  \
		const struct timespec *deadline = wait_begin(&wait, clock, abstime);               \
		int err;                                                                           \
                                                                                                   \
		pthread_cleanup_push(wait_end, &wait);                                             \
		do                                                                                 \
			err = (call);                                                              \
		while (wait_again(&wait, err));                                                    \
		pthread_cleanup_pop(1);                                                            \
		err;                                                                               \
	})

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
			   const struct timespec *abstime)
{
	return UNTIL(until, abstime, cond_clock(cond),
		     next_pthread_cond_timedwait(cond, mutex, until));
}

int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t id,
			   const struct timespec *abstime)
{
	return UNTIL(until, abstime, id, next_pthread_cond_clockwait(cond, mutex, id, until));
}

/* May a call with these arguments succeed at once?  libc looks at them before it looks at the lock.
 */
static bool may_be_tried(clockid_t id, const struct timespec *abstime)
{
	attach_first();
	return id == CLOCK_MONOTONIC && abstime && valid(abstime);
}

/* A try says EBUSY where the call would wait, or would find that this thread has the lock. */
#define TRY(id, abstime, try)                                                                      \
	if (may_be_tried(id, abstime)) {                                                           \
		int err = (try);                                                                   \
                                                                                                   \
		if (err != EBUSY)                                                                  \
			return err;                                                                \
	}

int pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t id, const struct timespec *abstime)
{
	TRY(id, abstime, next_pthread_mutex_trylock(mutex));
	return UNTIL(until, abstime, id, next_pthread_mutex_clocklock(mutex, id, until));
}

int pthread_rwlock_clockrdlock(pthread_rwlock_t *lock, clockid_t id, const struct timespec *abstime)
{
	TRY(id, abstime, next_pthread_rwlock_tryrdlock(lock));
	return UNTIL(until, abstime, id, next_pthread_rwlock_clockrdlock(lock, id, until));
}

int pthread_rwlock_clockwrlock(pthread_rwlock_t *lock, clockid_t id, const struct timespec *abstime)
{
	TRY(id, abstime, next_pthread_rwlock_trywrlock(lock));
	return UNTIL(until, abstime, id, next_pthread_rwlock_clockwrlock(lock, id, until));
}

int pthread_clockjoin_np(pthread_t thread, void **result, clockid_t id,
			 const struct timespec *abstime)
{
	return UNTIL(until, abstime, id, next_pthread_clockjoin_np(thread, result, id, until));
}

int sem_clockwait(sem_t *sem, clockid_t id, const struct timespec *abstime)
{
	int saved = errno, err;

	if (may_be_tried(id, abstime)) {
		if (!next_sem_trywait(sem))
			return 0;
		errno = saved;
	}
	err = UNTIL(until, abstime, id, next_sem_clockwait(sem, id, until) ? errno : 0);
	if (!err)
		return 0;
	errno = err;
	return -1;
}
