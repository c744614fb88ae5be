// SPDX-License-Identifier: MIT
/*
 * timerfds.c - timer descriptors that are set before the move and ring after it.
 *
 * The wait for a timer has no deadline of its own: the timer is what must be right.
 */
#include <sys/timerfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "beats.h"

enum { RINGS = 16, INTERVAL_NS = 200 * NS_PER_MS };

/* Returns once a timer has rung so often. */
static int await(int fd, uint64_t times)
{
	uint64_t rung = 0, expirations;

	if (fd < 0)
		return errno;
	for (; rung < times; rung += expirations) {
		if (read(fd, &expirations, sizeof(expirations)) < 0)
			return errno;
	}
	close(fd);
	return rung == times ? 0 : ERANGE;
}

/* A timer that is set; -1 if it cannot be. */
static int set(clockid_t clock, int flags, int64_t value, int64_t interval)
{
	struct itimerspec setting = { to_timespec(interval), to_timespec(value) };
	int fd = timerfd_create(clock, TFD_CLOEXEC);

	return timerfd_settime(fd, flags, &setting, NULL) ? -1 : fd;
}

static int absolute(struct asked *asked)
{
	return await(set(asked->clock, TFD_TIMER_ABSTIME, to_ns(asked->time), 0), 1);
}

static int relative(struct asked *asked)
{
	return await(set(asked->clock, 0, to_ns(asked->time), 0), 1);
}

/* CLOCK_REALTIME happens to measure the span, and that stands still. */
static int relative_realtime(struct asked *asked)
{
	return await(set(CLOCK_REALTIME, 0, to_ns(asked->time), 0), 1);
}

static int interval(struct asked *asked)
{
	int64_t each = to_ns(asked->time) / RINGS;

	return await(set(asked->clock, 0, each, each), RINGS);
}

/* The first of them rings at a time, the last when the wait should end. */
static int interval_from(struct asked *asked, bool read_late)
{
	int64_t first = to_ns(asked->time);
	uint64_t rings = 1;
	int fd;

	for (; first - INTERVAL_NS > read_ns(asked->clock); rings++)
		first -= INTERVAL_NS;
	fd = set(asked->clock, TFD_TIMER_ABSTIME, first, INTERVAL_NS);
	while (read_late && !moved())
		doze(INTERVAL_NS / 10);
	return await(fd, rings);
}

static int interval_read(struct asked *asked)
{
	return interval_from(asked, false);
}

/* What has rung and was not read counts on only when it is. */
static int interval_unread(struct asked *asked)
{
	return interval_from(asked, true);
}

static int by_syscall(struct asked *asked)
{
	struct itimerspec setting = { .it_value = asked->time };
	int fd = timerfd_create(asked->clock, TFD_CLOEXEC);

	if (syscall(SYS_timerfd_settime, fd, TFD_TIMER_ABSTIME, &setting, NULL))
		return errno;
	return await(fd, 1);
}

static const struct wait waits[] = {
	{ .name = "timerfd TFD_TIMER_ABSTIME MONOTONIC",
	  .clock = CLOCK_MONOTONIC,
	  .call = absolute,
	  .until = true },
	{ .name = "timerfd TFD_TIMER_ABSTIME BOOTTIME",
	  .clock = CLOCK_BOOTTIME,
	  .call = absolute,
	  .until = true },
	{ .name = "timerfd TFD_TIMER_ABSTIME REALTIME",
	  .clock = CLOCK_REALTIME,
	  .call = absolute,
	  .until = true },
	{ .name = "timerfd TFD_TIMER_ABSTIME interval",
	  .clock = CLOCK_MONOTONIC,
	  .call = interval_read,
	  .until = true },
	{ .name = "timerfd TFD_TIMER_ABSTIME interval, unread",
	  .clock = CLOCK_MONOTONIC,
	  .call = interval_unread,
	  .until = true },
	{ .name = "timerfd relative MONOTONIC", .clock = CLOCK_MONOTONIC, .call = relative },
	{ .name = "timerfd relative BOOTTIME", .clock = CLOCK_BOOTTIME, .call = relative },
	{ .name = "timerfd relative REALTIME",
	  .clock = CLOCK_MONOTONIC,
	  .call = relative_realtime },
	{ .name = "timerfd relative interval", .clock = CLOCK_MONOTONIC, .call = interval },
	{ .name = "syscall() timerfd_settime",
	  .clock = CLOCK_MONOTONIC,
	  .call = by_syscall,
	  .until = true },
	{ 0 },
};

const struct family timerfds = { .name = "timerfds", .waits = waits };
