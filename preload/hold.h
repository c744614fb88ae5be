/* SPDX-License-Identifier: MIT */
/*
 * hold.h - stops the timers of a process while its clocks stand still, and sets them again.
 *
 * POSIX timers and interval timers go on counting while a process is frozen, and CRIU's begin to
 * count before it runs again.  So none of them is set meanwhile: what is left of each is taken down
 * when the process is frozen, and it is set to ring at its virtual time once the process runs.
 */
#ifndef TIMESHIM_HOLD_H
#define TIMESHIM_HOLD_H

#include "inject.h"

/* What a timer goes by: indexes what ts_set_again() is given.  Nanoseconds. */
#define TS_BY_MONOTONIC 0
#define TS_BY_BOOTTIME 1
#define TS_BY_REALTIME 2 /* and TAI: real time, which no migration holds up */
#define TS_BY_SPAN 3 /* MONOTONIC, but it can only be set to what is left */
#define TS_BY_CPU 4 /* CPU time: what is left stays so while it does not run */
#define TS_BYS 5

#define TS_UNSET 0 /* nothing is to come, or to be done */
#define TS_HELD 1 /* it was set, and is not any more */
#define TS_RUNG                                                                                    \
	2 /* its signal is pending; the kernel goes on with its interval when that is taken */

struct ts_timer {
	int32_t id; /* the kernel's; ITIMER_REAL... for an interval timer */
	int32_t interval_timer; /* of setitimer(2) */
	int32_t clock; /* to read for `read`; none for TS_BY_CPU */
	int32_t by;
	int32_t signals; /* not SIGEV_NONE */
	int32_t thread; /* which its signal is for; 0: the process */
	int32_t state; /* ts_hold() */
	int32_t reserved;
	int64_t read; /* our reading of clock when so much was left; ts_hold() */
	int64_t left; /* ts_hold() */
	int64_t interval; /* ts_hold() */
	int64_t due; /* when it rings next; for TS_BY_CPU what is left.  For ts_set_again() */
};

/* Takes down and stops timers of a process: false if not all of them could be. */
bool ts_hold(struct ts_traced *process, struct ts_timer *timer, size_t count);

/*
 * Sets those again that are held, and if rung is set those that had rung too; ahead: how much what
 * they go by is ahead of the task's kernel clock, for TS_BY_SPAN of our own clock.  Returns how
 * many could not be.
 */
size_t ts_set_again(struct ts_traced *process, const struct ts_timer *timer, size_t count,
		    bool rung, const int64_t *ahead);

#endif
