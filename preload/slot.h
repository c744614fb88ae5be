/* SPDX-License-Identifier: MIT */
/*
 * slot.h - absolute deadlines that stay right when the kernel's clock changes.
 *
 * A wait that hands the kernel an absolute deadline is re-executed after a migration
 * and reads its timespec again.  So the timespec is kept in a slot of the page, beside
 * the virtual deadline that it stands for, and the supervisor corrects it while nothing
 * runs.  See docs/page.md for why every instruction boundary in between is safe.
 */
#ifndef TIMESHIM_SLOT_H
#define TIMESHIM_SLOT_H

#include "shim.h"

struct wait {
	struct ts_slot *slot; /* NULL: none was free, or none was needed */
	struct ts_time deadline; /* virtual */
	struct timespec unslotted; /* what the kernel is told when all slots are taken */
	uint64_t seen; /* generation when the wait, or its last repetition, began */
	clockid_t id;
	int index; /* of its clock; -1: not the shim's business */
};

/*
 * Returns the deadline to pass on: abstime itself if this wait is none of the shim's
 * business, for it has no deadline, its clock is not shifted, or libc has yet to refuse it.
 */
const struct timespec *wait_begin(struct wait *wait, clockid_t id, const struct timespec *abstime);

/*
 * Must a wait that ended with err go on?  Yes if it was cut short by a migration: EINTR
 * that no handler of the application caused, or a time-out before the virtual deadline.
 */
bool wait_again(struct wait *wait, int err);

/* Gives the slot back; a pthread cleanup handler, so that cancellation does as well. */
void wait_end(void *wait);

/* The clock that pthread_cond_timedwait() waits on; see find_cond_clock(). */
static inline clockid_t cond_clock(const pthread_cond_t *cond)
{
	return ((const uint32_t *)cond)[shim.cond_word] & shim.cond_monotonic ? CLOCK_MONOTONIC
									      : CLOCK_REALTIME;
}

#endif
