/* SPDX-License-Identifier: MIT */
/*
 * interrupted.h - going on with a relative wait that a migration interrupted.
 *
 *     struct interruptible call = call_begin(timeout);
 *     do
 *             result = next_...(..., call_left(&call, timeout));
 *     while (result < 0 && call_again(&call));
 */
#ifndef TIMESHIM_INTERRUPTED_H
#define TIMESHIM_INTERRUPTED_H

#include "timespec.h"

struct interruptible {
	uint64_t seen; /* generation when the call, or its last repetition, began */
	bool timed; /* deadline is valid */
	bool again;
	struct ts_time deadline; /* virtual MONOTONIC */
	struct timespec left;
};

/* timeout as the application gave it: none, or one that the kernel may have to refuse, too. */
static inline struct interruptible call_begin(const struct timespec *timeout)
{
	struct interruptible call = { .timed = false };

	attach_first();
	call.seen = generation();
	if (timeout && readable(timeout) && valid(timeout)) {
		call.timed = true;
		call.deadline = ts_add(read_clock(CLOCK_MONOTONIC), from_timespec(*timeout));
	}
	return call;
}

/* The time-out to give to the kernel: the application's own unless this is a repetition. */
static inline const struct timespec *call_left(struct interruptible *call,
					       const struct timespec *timeout)
{
	if (!call->timed || !call->again)
		return timeout;
	call->left = to_timespec(ts_remaining(call->deadline, read_clock(CLOCK_MONOTONIC)));
	return &call->left;
}

/* Must a call that failed with errno be repeated? */
static inline bool call_again(struct interruptible *call)
{
	uint64_t now = generation();

	if (errno != EINTR || now == call->seen)
		return false;
	call->seen = now;
	call->again = true;
	return true;
}

#endif
