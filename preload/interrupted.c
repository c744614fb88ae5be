// SPDX-License-Identifier: MIT
/*
 * interrupted.c - waits that the kernel gives up with EINTR whenever a thread is frozen.
 *
 * Neither the kernel nor CRIU executes these again, with or without a time-out.  If the
 * generation has changed since the call began, it was a migration (or an attempt at one)
 * that interrupted it, and it goes on with what is left.  Which of the two it was cannot be
 * told if a handler ran as well, in the very moment of the migration; then it goes on too.
 */
#include <sys/sem.h>

#include "interrupted.h"

NEXT(sem_timedwait);
NEXT(semop);
NEXT(semtimedop);
NEXT(sigtimedwait);
NEXT(sigwaitinfo);

/* Its deadline is absolute and on CLOCK_REALTIME, which is the host's business. */
int sem_timedwait(sem_t *sem, const struct timespec *abstime)
{
	struct interruptible call = call_begin(NULL);
	int result;

	do
		result = next_sem_timedwait(sem, abstime);
	while (result < 0 && call_again(&call));
	return result;
}

int sigwaitinfo(const sigset_t *set, siginfo_t *info)
{
	struct interruptible call = call_begin(NULL);
	int result;

	do
		result = next_sigwaitinfo(set, info);
	while (result < 0 && call_again(&call));
	return result;
}

int sigtimedwait(const sigset_t *set, siginfo_t *info, const struct timespec *timeout)
{
	struct interruptible call = call_begin(timeout);
	int result;

	do
		result = next_sigtimedwait(set, info, call_left(&call, timeout));
	while (result < 0 && call_again(&call));
	return result;
}

int semop(int id, struct sembuf *ops, size_t count)
{
	struct interruptible call = call_begin(NULL);
	int result;

	do
		result = next_semop(id, ops, count);
	while (result < 0 && call_again(&call));
	return result;
}

int semtimedop(int id, struct sembuf *ops, size_t count, const struct timespec *timeout)
{
	struct interruptible call = call_begin(timeout);
	int result;

	do
		result = next_semtimedop(id, ops, count, call_left(&call, timeout));
	while (result < 0 && call_again(&call));
	return result;
}
