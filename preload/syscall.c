// SPDX-License-Identifier: MIT
/*
 * syscall.c - the function syscall(), by which some runtimes reach clocks and futexes.
 *
 * Rust's standard library and libstdc++'s futures wait on futexes this way, with absolute
 * deadlines on CLOCK_MONOTONIC that they got from clock_gettime().  The calls that carry a time
 * of a shifted clock are converted here as their libc namesakes are; all others go through.
 *
 * Unlike those, syscall() is no cancellation point, so no cleanup handler is needed.
 */
#include <errno.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "slot.h"
#include "timespec.h"

#ifndef FUTEX_LOCK_PI2 /* Linux 5.14 */
#define FUTEX_LOCK_PI2 13
#endif
#ifndef SYS_futex_waitv /* Linux 5.16 */
#define SYS_futex_waitv 449
#endif

static long result(long ret)
{
	if ((unsigned long)ret < -4095UL)
		return ret;
	errno = (int)-ret;
	return -1;
}

/* The argument of a futex operation that is an absolute deadline on a shifted clock, or NULL. */
static const struct timespec *futex_deadline(const long *arg)
{
	long operation = arg[1] & FUTEX_CMD_MASK;

	if (arg[1] & FUTEX_CLOCK_REALTIME)
		return NULL;
	switch (operation) {
	case FUTEX_WAIT_BITSET:
	case FUTEX_LOCK_PI2:
	case FUTEX_WAIT_REQUEUE_PI:
		return (const struct timespec *)arg[3];
	default:
		return NULL;
	}
}

/*
 * Executes a system call whose argument number which is a deadline on a clock.  CRIU has it
 * return EINTR on the other host; then it goes on.
 */
static long until(long number, long *arg, int which, clockid_t clock)
{
	struct wait wait;
	long ret;

	arg[which] = (long)wait_begin(&wait, clock, (const struct timespec *)arg[which]);
	do
		ret = kernel_call(number, arg);
	while (wait_again(&wait, ret < 0 ? (int)-ret : 0));
	wait_end(&wait);
	return result(ret);
}

/* FUTEX_WAIT has a relative time-out: the same wait with a deadline can be corrected. */
static long futex_wait(long *arg)
{
	const struct timespec *timeout = (const struct timespec *)arg[3];
	struct timespec deadline;
	long as_bitset[6] = { arg[0], (arg[1] & ~FUTEX_CMD_MASK) | FUTEX_WAIT_BITSET,
			      arg[2], (long)&deadline,
			      0,      (long)FUTEX_BITSET_MATCH_ANY };

	if (!timeout || !valid(timeout) || arg[1] & FUTEX_CLOCK_REALTIME)
		return result(kernel_call(SYS_futex, arg));
	deadline = to_timespec(ts_add(read_clock(CLOCK_MONOTONIC), from_timespec(*timeout)));
	return until(SYS_futex, as_bitset, 3, CLOCK_MONOTONIC);
}

long syscall(long number, ...)
{
	long arg[6];
	va_list list;

	/* As libc does: what the caller did not pass is read all the same, and ignored. */
	va_start(list, number);
	for (int i = 0; i < 6; i++)
		arg[i] = va_arg(list, long);
	va_end(list);

	switch (number) {
	case SYS_clock_gettime:
		return clock_gettime((clockid_t)arg[0], (struct timespec *)arg[1]);
	case SYS_clock_nanosleep:
		if (arg[1] & TIMER_ABSTIME)
			return until(number, arg, 2, (clockid_t)arg[0]);
		break;
	case SYS_futex:
		if ((arg[1] & FUTEX_CMD_MASK) == FUTEX_WAIT)
			return futex_wait(arg);
		if (futex_deadline(arg))
			return until(number, arg, 3, CLOCK_MONOTONIC);
		break;
	case SYS_futex_waitv:
		if (arg[3])
			return until(number, arg, 3, (clockid_t)arg[4]);
		break;
	case SYS_timerfd_settime:
		return timerfd_settime((int)arg[0], (int)arg[1], (const struct itimerspec *)arg[2],
				       (struct itimerspec *)arg[3]);
	}
	return result(kernel_call(number, arg));
}
