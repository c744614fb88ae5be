// SPDX-License-Identifier: MIT
/*
 * timers.c - POSIX timers that ring at an absolute time.
 */
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "beats.h"

/* Rings once, by a signal to the thread that waits for it. */
static int ring(struct asked *asked)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR2 };
	struct itimerspec setting = { .it_value = asked->time };
	sigset_t set;
	timer_t id;
	int caught;

	event._sigev_un._tid = gettid();
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	if (timer_create(asked->clock, &event, &id) ||
	    timer_settime(id, TIMER_ABSTIME, &setting, NULL))
		return errno;
	sigwait(&set, &caught);
	timer_delete(id);
	return 0;
}

static const struct wait waits[] = {
	{ .name = "timer_settime TIMER_ABSTIME MONOTONIC",
	  .clock = CLOCK_MONOTONIC,
	  .call = ring,
	  .until = true },
	{ .name = "timer_settime TIMER_ABSTIME BOOTTIME",
	  .clock = CLOCK_BOOTTIME,
	  .call = ring,
	  .until = true },
	{ 0 },
};

const struct family timers = { .name = "timers", .waits = waits };
