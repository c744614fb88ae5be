/* SPDX-License-Identifier: MIT */
/*
 * interrupted.h - going on with a wait that the kernel gives up with EINTR when a thread is frozen.
 *
 *     struct interruptible call = call_begin(timeout != NULL);
 *     do
 *             result = next_...(..., call_left(&call, timeout));
 *     while (result < 0 && call_again(&call));
 */
#ifndef TIMESHIM_INTERRUPTED_H
#define TIMESHIM_INTERRUPTED_H

#include "timespec.h"

struct interruptible {
	uint64_t seen; /* generation when the call, or its last repetition, began */
	bool again;
	struct ts_time start; /* virtual MONOTONIC, if there is a time-out */
	struct timespec left;
};

static inline struct interruptible call_begin(bool timed)
{
	struct interruptible call = { .again = false };

	attach_first();
	call.seen = generation();
	if (timed)
		call.start = read_clock(CLOCK_MONOTONIC);
	return call;
}

/*
 * The time-out to give to the kernel: the application's own, which may be none or one to be
 * refused, unless this is a repetition.
 */
static inline const struct timespec *call_left(struct interruptible *call,
					       const struct timespec *timeout)
{
	if (!timeout || !call->again)
		return timeout;
	call->left = to_timespec(ts_remaining(ts_add(call->start, from_timespec(*timeout)),
					      read_clock(CLOCK_MONOTONIC)));
	return &call->left;
}

/*
 * Must a call that its time-out has ended be repeated?  The kernel goes on with some waits by
 * itself when a thread that was frozen runs on, and counts the time that the virtual clocks stood
 * still.
 */
static inline bool call_early(struct interruptible *call, const struct timespec *timeout)
{
	struct ts_time deadline = ts_add(call->start, from_timespec(*timeout));

	call->again = ts_before(read_clock(CLOCK_MONOTONIC), deadline);
	return call->again;
}

/* Must a call that failed with errno be repeated? */
static inline bool call_again(struct interruptible *call)
{
	uint64_t now = generation();

	if (errno != EINTR || now == call->seen || signalled_since(call->seen))
		return false;
	call->seen = now;
	call->again = true;
	return true;
}

#endif
