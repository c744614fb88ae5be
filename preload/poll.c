// SPDX-License-Identifier: MIT
/*
 * poll.c - waiting for descriptors to become ready.
 *
 * poll() is restarted from state of the kernel's, which CRIU cannot save: it makes it fail with
 * EINTR.  The epoll calls fail so as soon as a thread is frozen.  Both are repeated as in
 * interrupted.c.  ppoll(), select() and pselect() (both of which glibc makes of the system call
 * pselect6) are executed again, with what is left of their time-outs written back.
 */
#include <poll.h>
#include <sys/epoll.h>

#include "interrupted.h"
#include "trap.h"

NEXT(epoll_pwait);
NEXT(epoll_pwait2);
NEXT(epoll_wait);
NEXT(poll);
NEXT(ppoll);

/* What _FORTIFY_SOURCE makes of poll(): size is that of the array, as far as the compiler knows. */
int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size);
NEXT(__poll_chk);

static struct ts_time from_ms(int ms)
{
	return (struct ts_time){ ms / 1000, ms % 1000 * 1000000 };
}

/*
 * What is left of a time-out, in milliseconds: rounded up, for nothing may end early.  As given,
 * unless this is a repetition.
 */
static int ms_left(struct interruptible *call, int timeout)
{
	struct timespec span;
	const struct timespec *left;

	if (timeout <= 0 || !call->again)
		return timeout;
	span = to_timespec(from_ms(timeout));
	left = call_left(call, &span);
	return (int)(left->tv_sec * 1000 + (left->tv_nsec + 999999) / 1000000);
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	struct interruptible call = call_begin(timeout > 0); /* attaches */
	struct timespec span;
	int ready;

	if (!timeout)
		return next_poll(fds, count, 0);
	for (;;) {
		ready = next_poll(fds, count, ms_left(&call, timeout));
		if (ready > 0 || (ready < 0 && !call_again(&call)))
			return ready;
		span = to_timespec(from_ms(timeout));
		if (!ready && (timeout < 0 || !call_early(&call, &span)))
			return ready;
	}
}

int __poll(struct pollfd *fds, nfds_t count, int timeout)
	__attribute__((alias("poll"), copy(poll)));

int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size)
{
	attach_first();
	/* ends the process, with libc's own words */
	if (size / sizeof(*fds) < count)
		return next___poll_chk(fds, count, timeout, size);
	return poll(fds, count, timeout);
}

int epoll_wait(int epfd, struct epoll_event *events, int most, int timeout)
{
	struct interruptible call = call_begin(timeout > 0);
	int count;

	do
		count = next_epoll_wait(epfd, events, most, ms_left(&call, timeout));
	while (count < 0 && call_again(&call));
	return count;
}

/*
 * With a mask, signals may come that are kept off before and after.  One that arrives between the
 * supervisor's look and the thaw is not noted, and its handler cannot have run just before the
 * call.  So EINTR must not mean both here: an epoll descriptor is readable while it has events to
 * report, ppoll() waits for that, and they are fetched without waiting; another thread may be
 * faster. The price is that an event wakes all threads that wait here for the same descriptor.
 */
static int wait_masked(int epfd, struct epoll_event *events, int most,
		       const struct ts_time *timeout, const sigset_t *mask)
{
	struct pollfd epoll = { .fd = epfd, .events = POLLIN };
	struct ts_time deadline;
	sigset_t room;
	int count;

	mask = blockable(mask, &room);
	count = next_epoll_pwait(epfd, events, most, 0, mask);

	if (count || (timeout && !timeout->sec && !timeout->nsec))
		return count;
	if (timeout)
		deadline = ts_add(read_clock(CLOCK_MONOTONIC), *timeout);
	do {
		struct timespec left;

		if (timeout)
			left = to_timespec(ts_remaining(deadline, read_clock(CLOCK_MONOTONIC)));
		count = next_ppoll(&epoll, 1, timeout ? &left : NULL, mask);
		if (count <= 0)
			return count;
		count = next_epoll_pwait(epfd, events, most, 0, mask);
	} while (!count);
	return count;
}

int epoll_pwait(int epfd, struct epoll_event *events, int most, int timeout, const sigset_t *mask)
{
	struct ts_time span = from_ms(timeout);

	if (!mask)
		return epoll_wait(epfd, events, most, timeout);
	attach_first();
	return wait_masked(epfd, events, most, timeout < 0 ? NULL : &span, mask);
}

int epoll_pwait2(int epfd, struct epoll_event *events, int most, const struct timespec *timeout,
		 const sigset_t *mask)
{
	struct ts_time span;

	attach_first();
	if (!next_epoll_pwait2) { /* glibc before 2.35 */
		errno = ENOSYS;
		return -1;
	}
	if (!mask) {
		struct interruptible call = call_begin(timeout != NULL);
		int count;

		do
			count = next_epoll_pwait2(epfd, events, most, call_left(&call, timeout),
						  NULL);
		while (count < 0 && call_again(&call));
		return count;
	}
	if (!timeout)
		return wait_masked(epfd, events, most, NULL, mask);
	if (!readable(timeout)) {
		errno = EFAULT;
		return -1;
	}
	if (!valid(timeout)) {
		errno = EINVAL;
		return -1;
	}
	span = from_timespec(*timeout);
	return wait_masked(epfd, events, most, &span, mask);
}
