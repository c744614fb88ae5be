/* SPDX-License-Identifier: MIT */
/*
 * timespec.h - the application's timespecs: whether they can be used, and as ts_time.
 *
 * Where the kernel reads or writes a timespec itself, it answers EFAULT to a bad pointer.  A
 * function that does so in the kernel's place must not raise SIGSEGV instead.
 */
#ifndef TIMESHIM_TIMESPEC_H
#define TIMESHIM_TIMESPEC_H

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim.h"

static inline struct ts_time from_timespec(struct timespec ts)
{
	return (struct ts_time){ ts.tv_sec, ts.tv_nsec };
}

static inline struct timespec to_timespec(struct ts_time t)
{
	return (struct timespec){ t.sec, t.nsec };
}

/* Virtual, as the application reads it. */
static inline struct ts_time read_clock(clockid_t id)
{
	struct timespec now;

	clock_gettime(id, &now);
	return from_timespec(now);
}

static inline bool valid(const struct timespec *ts)
{
	return ts->tv_sec >= 0 && ts->tv_nsec >= 0 && ts->tv_nsec < TS_NSEC_PER_SEC;
}

static inline const char *page_of(const void *address)
{
	return (const char *)((uintptr_t)address & -4096ul);
}

/*
 * Of the pages that it lies in, the one that this function's own frame is in can be read.  About
 * others rt_sigprocmask says, which copies the set before it looks at how, and refuses that.
 */
static inline bool readable(const struct timespec *ts)
{
	const char *last = (const char *)(ts + 1) - 1;
	bool is = ts != NULL;

	for (const char *at = (const char *)ts; is && at <= last; at = page_of(at) + 4096)
		if (page_of(at) != page_of(__builtin_frame_address(0)))
			is = kernel_call(SYS_rt_sigprocmask,
					 (const long[6]){ -1, (long)at, 0, sizeof(long) }) !=
			     -EFAULT;
	return is;
}

/* What was there is lost. */
static inline bool writable(struct timespec *ts)
{
	int saved = errno;
	bool is = ts != NULL;

	for (long *word = (long *)ts; is && word < (long *)(ts + 1); word++)
		is = !syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, word, sizeof(*word));
	errno = saved;
	return is;
}

#endif
