// SPDX-License-Identifier: MIT
/*
 * sleep.c - sleeping, for a span or until a time.
 *
 * The kernel restarts a relative sleep from state of its own, which CRIU cannot save: it
 * makes the call fail with EINTR.  An absolute one is executed again with the arguments
 * that it had.  So every sleep is an absolute one here, with its deadline in a slot; then
 * EINTR can only mean that a handler of the application ran, and is never second-guessed.
 */
#include <errno.h>
#include <threads.h>
#include <unistd.h>

#include "slot.h"
#include "timespec.h"

NEXT(clock_nanosleep);

/*
 * Of two clocks that count a span alike, the one that is shifted.  The kernel takes MONOTONIC
 * for a relative sleep on REALTIME or TAI as well, so that setting those does not prolong it.
 */
static clockid_t steady(clockid_t id)
{
	return id == CLOCK_REALTIME || id == CLOCK_TAI ? CLOCK_MONOTONIC : id;
}

static int sleep_until(clockid_t id, const struct timespec *deadline)
{
	struct wait wait;
	const struct timespec *until = wait_begin(&wait, id, deadline);
	int err;

	pthread_cleanup_push(wait_end, &wait);
	do
		err = next_clock_nanosleep(id, TIMER_ABSTIME, until, NULL);
	while (!err && wait_again(&wait, ETIMEDOUT));
	pthread_cleanup_pop(1);
	return err;
}

/* Sleeps for a span that is valid; returns 0, or EINTR and stores what is left of it. */
static int sleep_for(clockid_t id, const struct timespec *span, struct timespec *left)
{
	struct ts_time deadline = ts_add(read_clock(id), from_timespec(*span));
	struct timespec until = to_timespec(deadline);
	int err = sleep_until(id, &until);

	if (err == EINTR)
		*left = to_timespec(ts_remaining(deadline, read_clock(id)));
	return err;
}

/* On CPU time, of which the kernel does not count what was used on other hosts. */
static int sleep_on_other_clock(clockid_t id, int flags, const struct timespec *req,
				struct timespec *rem)
{
	struct timespec until;

	if (!(flags & TIMER_ABSTIME))
		return next_clock_nanosleep(id, flags, req, rem);
	until = to_timespec(
		ts_kernel_deadline(from_timespec(*req), ts_from_ns(cpu_used_elsewhere(id))));
	return next_clock_nanosleep(id, flags, &until, rem);
}

int clock_nanosleep(clockid_t id, int flags, const struct timespec *req, struct timespec *rem)
{
	struct timespec left;
	int err;

	attach_first();
	if (!readable(req) || !valid(req))
		return next_clock_nanosleep(id, flags, req, rem);
	if (clock_index(steady(id)) < 0)
		return sleep_on_other_clock(id, flags, req, rem);
	if (flags & TIMER_ABSTIME)
		return sleep_until(id, req);

	err = sleep_for(steady(id), req, &left);
	if (err == EINTR && rem) {
		if (!writable(rem))
			return EFAULT;
		*rem = left;
	}
	return err;
}

int nanosleep(const struct timespec *req, struct timespec *rem)
{
	int err = clock_nanosleep(CLOCK_MONOTONIC, 0, req, rem);

	if (!err)
		return 0;
	errno = err;
	return -1;
}

/* Names of libc's for those that do not want POSIX in their name space. */
int __nanosleep(const struct timespec *req, struct timespec *rem)
	__attribute__((alias("nanosleep"), copy(nanosleep)));

int usleep(useconds_t us)
{
	return nanosleep(&(struct timespec){ us / 1000000, us % 1000000 * 1000 }, NULL);
}

unsigned int sleep(unsigned int seconds)
{
	struct timespec left = { seconds, 0 };

	return nanosleep(&left, &left) ? (unsigned int)left.tv_sec : 0;
}

int thrd_sleep(const struct timespec *req, struct timespec *rem)
{
	switch (clock_nanosleep(CLOCK_MONOTONIC, 0, req, rem)) {
	case 0:
		return 0;
	case EINTR:
		return -1;
	default:
		return -2; /* as in glibc; the standard asks for any other negative value */
	}
}
