// SPDX-License-Identifier: MIT
/*
 * interrupted.c - waits that the kernel gives up with EINTR whenever a thread is frozen.
 *
 * Neither the kernel nor CRIU executes these again, with or without a time-out.  If the
 * generation has changed since the call began, it was a migration (or an attempt at one)
 * that interrupted it, and it goes on with what is left; unless the supervisor found a signal
 * for this thread, whose handler has run by now.  All of these return EINTR then, whether the
 * handler was installed with SA_RESTART or not (signal(7)).
 */
#include <sys/sem.h>

#include "interrupted.h"

NEXT(sem_timedwait);
NEXT(semop);
NEXT(semtimedop);
NEXT(sigtimedwait);
NEXT(sigwaitinfo);

bool signalled_since(uint64_t seen)
{
	uint32_t self = (uint32_t)kernel_call(SYS_gettid, (const long[6]){ 0 });

	for (uint32_t i = 0; i < TS_SIGNALLED_NEAR; i++) {
		const struct ts_signalled *entry = &shim.signals->entry[(self + i) % TS_SIGNALLED];

		if (__atomic_load_n(&entry->thread, __ATOMIC_RELAXED) == self)
			return __atomic_load_n(&entry->generation, __ATOMIC_RELAXED) > seen;
	}
	return false;
}

/* Its deadline is absolute and on CLOCK_REALTIME, which is the host's business. */
int sem_timedwait(sem_t *sem, const struct timespec *abstime)
{
	struct interruptible call = call_begin(false);
	int result;

	do
		result = next_sem_timedwait(sem, abstime);
	while (result < 0 && call_again(&call));
	return result;
}

int sigwaitinfo(const sigset_t *set, siginfo_t *info)
{
	struct interruptible call = call_begin(false);
	int result;

	do
		result = next_sigwaitinfo(set, info);
	while (result < 0 && call_again(&call));
	return result;
}

int sigtimedwait(const sigset_t *set, siginfo_t *info, const struct timespec *timeout)
{
	struct interruptible call = call_begin(timeout != NULL);
	int result;

	do
		result = next_sigtimedwait(set, info, call_left(&call, timeout));
	while (result < 0 && call_again(&call));
	return result;
}

int semop(int id, struct sembuf *ops, size_t count)
{
	struct interruptible call = call_begin(false);
	int result;

	do
		result = next_semop(id, ops, count);
	while (result < 0 && call_again(&call));
	return result;
}

int semtimedop(int id, struct sembuf *ops, size_t count, const struct timespec *timeout)
{
	struct interruptible call = call_begin(timeout != NULL);
	int result;

	do
		result = next_semtimedop(id, ops, count, call_left(&call, timeout));
	while (result < 0 && call_again(&call));
	return result;
}
