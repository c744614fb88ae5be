// SPDX-License-Identifier: MIT
/*
 * syscall.c - the function syscall(), by which some runtimes reach clocks and futexes.
 *
 * Rust's standard library and libstdc++'s futures wait on futexes this way, with absolute
 * deadlines on CLOCK_MONOTONIC that they got from clock_gettime().  Here futexes are treated as the
 * waits of wait.c are, and calls that the shim treats under a name of libc's as by that name; all
 * others go through.
 *
 * Unlike those names, syscall() is no cancellation point.
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <unistd.h>

#include "interrupted.h"
#include "slot.h"
#include "timer.h"
#include "trap.h"

#ifndef FUTEX_LOCK_PI2 /* Linux 5.14 */
#define FUTEX_LOCK_PI2 13
#endif
#ifndef SYS_epoll_pwait2 /* Linux 5.11 */
#define SYS_epoll_pwait2 441
#endif
#ifndef SYS_futex_waitv /* Linux 5.16 */
#define SYS_futex_waitv 449
#endif

#define SIGSET_BYTES 8 /* the kernel's, which refuses any other size */

static long result(long ret)
{
	if ((unsigned long)ret < -4095UL)
		return ret;
	errno = (int)-ret;
	return -1;
}

static bool has_deadline(const long *futex)
{
	switch (futex[1] & FUTEX_CMD_MASK) {
	case FUTEX_WAIT_BITSET:
	case FUTEX_LOCK_PI2:
	case FUTEX_WAIT_REQUEUE_PI:
		return futex[3];
	default:
		return false;
	}
}

/*
 * What ended a wait, as an error number to ask wait_again() about.  Older futex operations return
 * EINTR when a thread is frozen; futex_waitv is executed again, so if it does, a handler ran, and
 * that may be long after the migration.
 */
static int cause(long number, long ret)
{
	if (ret >= 0 || (number == SYS_futex_waitv && ret == -EINTR))
		return 0;
	return (int)-ret;
}

/* Executes a system call whose argument number which is a deadline on a clock. */
static long until(long number, long *arg, int which, clockid_t clock)
{
	struct wait wait;
	long ret;

	arg[which] = (long)wait_begin(&wait, clock, (const struct timespec *)arg[which]);
	do
		ret = kernel_call(number, arg);
	while (wait_again(&wait, cause(number, ret)));
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

static long signal_wait(long *arg)
{
	const struct timespec *timeout = (const struct timespec *)arg[2];
	struct interruptible call = call_begin(timeout != NULL);
	long ret;

	do {
		arg[2] = (long)call_left(&call, timeout);
		ret = result(kernel_call(SYS_rt_sigtimedwait, arg));
	} while (ret < 0 && call_again(&call));
	return ret;
}

static int raw_settime(timer_t id, int flags, const struct itimerspec *new, struct itimerspec *old)
{
	return (int)result(kernel_call(SYS_timer_settime,
				       (const long[6]){ (long)id, flags, (long)new, (long)old }));
}

static long raw_create(const long *arg)
{
	long ret = kernel_call(SYS_timer_create, arg);
	long id;

	if (ret)
		return result(ret);
	id = *(int *)arg[2];
	if (note_timer((timer_t)id, (clockid_t)arg[0]))
		return 0;
	kernel_call(SYS_timer_delete, (const long[6]){ id });
	return result(-EAGAIN);
}

typedef long function_of_six(long, long, long, long, long, long);

/* Calls a function of the shim's that takes the same arguments and returns an int or as few bits.
 */
static int call(void *function, const long *arg)
{
	return (int)((function_of_six *)function)(arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
}

/* The same for one that is a cancellation point. */
static int uncancelled(void *function, const long *arg)
{
	int state, ret;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
	ret = call(function, arg);
	pthread_setcancelstate(state, NULL);
	return ret;
}

#define NAMESAKE(name)                                                                             \
	case SYS_##name:                                                                           \
		return call((void *)name, arg)
#define WAIT(name)                                                                                 \
	case SYS_##name:                                                                           \
		return uncancelled((void *)name, arg)
/* What is read and written in one call is less than 2^31 bytes (read(2)). */
#define TRANSFER(name)                                                                             \
	case SYS_##name:                                                                           \
		if (!socket_timeouts_in_use())                                                     \
			break;                                                                     \
		return uncancelled((void *)name, arg)

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
	case SYS_getrusage:
		return getrusage((__rusage_who_t)arg[0], (struct rusage *)arg[1]);
	case SYS_sysinfo:
		return sysinfo((struct sysinfo *)arg[0]);
	case SYS_times:
		return times((struct tms *)arg[0]);

	case SYS_clock_nanosleep:
		return result(-uncancelled((void *)clock_nanosleep, arg));
	case SYS_futex:
		if ((arg[1] & FUTEX_CMD_MASK) == FUTEX_WAIT)
			return futex_wait(arg);
		if (has_deadline(arg))
			return until(number, arg, 3,
				     arg[1] & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME
								   : CLOCK_MONOTONIC);
		break;
	case SYS_futex_waitv:
		if (arg[3])
			return until(number, arg, 3, (clockid_t)arg[4]);
		break;
	case SYS_rt_sigtimedwait:
		return signal_wait(arg);
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
		if (arg[4] && arg[5] != SIGSET_BYTES)
			break;
		return uncancelled(number == SYS_epoll_pwait ? (void *)epoll_pwait
							     : (void *)epoll_pwait2,
				   arg);

		NAMESAKE(execve);
		NAMESAKE(execveat);
		NAMESAKE(semop);
		NAMESAKE(semtimedop);
		NAMESAKE(setsockopt);
		NAMESAKE(timerfd_settime);

		WAIT(epoll_wait);
		WAIT(nanosleep);
		WAIT(poll);

		TRANSFER(accept);
		TRANSFER(accept4);
		TRANSFER(read);
		TRANSFER(readv);
		TRANSFER(recvfrom);
		TRANSFER(recvmmsg);
		TRANSFER(recvmsg);
		TRANSFER(sendmmsg);
		TRANSFER(sendmsg);
		TRANSFER(sendto);
		TRANSFER(write);
		TRANSFER(writev);
	case SYS_rt_sigaction:
		if (arg[3] == SIGSET_BYTES && trapping())
			return raw_sigaction(arg);
		break;
	case SYS_rt_sigprocmask:
		if (arg[3] == SIGSET_BYTES && trapping())
			return raw_sigprocmask(arg);
		break;
	case SYS_setitimer:
	case SYS_alarm:
		declare_interval_timer();
		break;
	case SYS_timer_create:
		return raw_create(arg);
	case SYS_timer_delete:
		forget_timer((timer_t)arg[0]);
		break;
	case SYS_timer_settime:
		return set_timer(raw_settime, (timer_t)arg[0], (int)arg[1],
				 (const struct itimerspec *)arg[2], (struct itimerspec *)arg[3]);
	}
	return result(kernel_call(number, arg));
}
