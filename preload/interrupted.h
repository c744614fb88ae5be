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

/* For a call that may wait for a span, or for ever if there is none. */
static inline struct interruptible call_begin_span(const struct ts_time *span)
{
	struct interruptible call = { .timed = span };

	attach_first();
	call.seen = generation();
	if (span)
		call.deadline = ts_add(read_clock(CLOCK_MONOTONIC), *span);
	return call;
}

/* timeout as the application gave it: none, or one that the kernel may have to refuse, too. */
static inline struct interruptible call_begin(const struct timespec *timeout)
{
	struct ts_time span;

	if (!timeout || !readable(timeout) || !valid(timeout))
		return call_begin_span(NULL);
	span = from_timespec(*timeout);
	return call_begin_span(&span);
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

/* The same in whole milliseconds, rounded up: no wait ends early. */
static inline int call_left_ms(const struct interruptible *call)
{
	struct ts_time left = ts_remaining(call->deadline, read_clock(CLOCK_MONOTONIC));

	return (int)(left.sec * 1000 + (left.nsec + 999999) / 1000000);
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
