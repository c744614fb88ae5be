// SPDX-License-Identifier: MIT
/*
 * poll.c - waiting for descriptors to become ready.
 *
 * poll() is restarted from state that CRIU cannot save, so that it fails with EINTR after a
 * migration.  ppoll() is executed again, with what is left of its time-out written back (to a
 * copy that libc makes), and fails with EINTR only if a handler ran; so poll() waits in that.
 * select() and pselect() are as good by themselves: glibc makes both of the system call pselect6.
 * The epoll calls fail with EINTR as soon as a thread is frozen.
 */
#include <poll.h>
#include <sys/epoll.h>

#include "interrupted.h"

NEXT(epoll_pwait);
NEXT(epoll_pwait2);
NEXT(poll);
NEXT(ppoll);

/* What _FORTIFY_SOURCE makes of poll(): size is that of the array, as far as the compiler knows. */
int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size);
NEXT(__poll_chk);

static struct ts_time from_ms(int ms)
{
	return (struct ts_time){ ms / 1000, ms % 1000 * 1000000 };
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	struct timespec left;

	attach_first();
	if (timeout == 0)
		return next_poll(fds, count, 0);
	if (timeout < 0)
		return next_ppoll(fds, count, NULL, NULL);
	left = to_timespec(from_ms(timeout));
	return next_ppoll(fds, count, &left, NULL);
}

int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size)
{
	attach_first();
	/* ends the process, with libc's own words */
	if (size / sizeof(*fds) < count)
		return next___poll_chk(fds, count, timeout, size);
	return poll(fds, count, timeout);
}

/*
 * epoll_wait() in place of ppoll() would wake every thread that waits for a descriptor instead of
 * one, and cost a server two system calls an event more; so the epoll calls are repeated instead.
 */
int epoll_pwait(int epfd, struct epoll_event *events, int most, int timeout, const sigset_t *mask)
{
	struct ts_time span = from_ms(timeout);
	struct interruptible call = call_begin_span(timeout > 0 ? &span : NULL);
	int result;

	do {
		result = next_epoll_pwait(epfd, events, most, timeout, mask);
		if (likely(result >= 0 || !call_again(&call)))
			return result;
		if (timeout > 0)
			timeout = call_left_ms(&call);
	} while (true);
}

int epoll_wait(int epfd, struct epoll_event *events, int most, int timeout)
{
	return epoll_pwait(epfd, events, most, timeout, NULL);
}

int epoll_pwait2(int epfd, struct epoll_event *events, int most, const struct timespec *timeout,
		 const sigset_t *mask)
{
	struct interruptible call = call_begin(timeout);
	int result;

	if (!next_epoll_pwait2) { /* glibc 2.35 */
		errno = ENOSYS;
		return -1;
	}
	do
		result = next_epoll_pwait2(epfd, events, most, call_left(&call, timeout), mask);
	while (result < 0 && call_again(&call));
	return result;
}
