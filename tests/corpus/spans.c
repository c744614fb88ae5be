// SPDX-License-Identifier: MIT
/*
 * spans.c - waits for a span of time, and those without an end that are as easily interrupted.
 */
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <threads.h>
#include <unistd.h>

#include "beats.h"

/* Sleeps --------------------------------------------------------------------------------------- */

static int nano(struct asked *asked)
{
	return error_of(nanosleep(&asked->time, &asked->left));
}

static int clock_nano(struct asked *asked)
{
	return clock_nanosleep(asked->clock, 0, &asked->time, &asked->left);
}

/* These clocks happen to measure the span, and that stands still. */
static int clock_nano_realtime(struct asked *asked)
{
	return clock_nanosleep(CLOCK_REALTIME, 0, &asked->time, &asked->left);
}

static int clock_nano_tai(struct asked *asked)
{
	return clock_nanosleep(CLOCK_TAI, 0, &asked->time, &asked->left);
}

static int micro(struct asked *asked)
{
	return error_of(usleep(to_ns(asked->time) / 1000));
}

static int seconds(struct asked *asked)
{
	unsigned int left = sleep(asked->time.tv_sec);

	if (!left)
		return 0;
	asked->left = (struct timespec){ left, 0 };
	return EINTR;
}

static int c11(struct asked *asked)
{
	int result = thrd_sleep(&asked->time, &asked->left);

	return result == -1 ? EINTR : -result;
}

/* Descriptors ---------------------------------------------------------------------------------- */

static int to_ms(const struct asked *asked)
{
	return (int)(to_ns(asked->time) / NS_PER_MS);
}

static int polling(struct asked *asked)
{
	return error_of(poll(NULL, 0, to_ms(asked)));
}

static int ppolling(struct asked *asked)
{
	return error_of(ppoll(NULL, 0, &asked->time, NULL));
}

static int selecting(struct asked *asked)
{
	struct timeval left = { asked->time.tv_sec, asked->time.tv_nsec / 1000 };
	int result = select(0, NULL, NULL, NULL, &left);

	if (result)
		asked->left = (struct timespec){ left.tv_sec, left.tv_usec * 1000 };
	return error_of(result);
}

static int pselecting(struct asked *asked)
{
	return error_of(pselect(0, NULL, NULL, NULL, &asked->time, NULL));
}

static int epoll(struct asked *asked)
{
	struct epoll_event event;

	return error_of(epoll_wait(epoll_create1(0), &event, 1, to_ms(asked)));
}

static int epoll_p(struct asked *asked)
{
	struct epoll_event event;

	return error_of(epoll_pwait(epoll_create1(0), &event, 1, to_ms(asked), NULL));
}

static int epoll_p2(struct asked *asked)
{
	struct epoll_event event;

	return error_of(epoll_pwait2(epoll_create1(0), &event, 1, &asked->time, NULL));
}

static int event[2]; /* a pipe, written to at the end */

static void raise_event(pthread_t waiter)
{
	(void)waiter;
	if (write(event[1], "", 1) < 0)
		abort();
}

static int polling_forever(struct asked *asked)
{
	struct pollfd readable = { .fd = event[0], .events = POLLIN };

	(void)asked;
	return error_of(poll(&readable, 1, -1));
}

static int epoll_forever(struct asked *asked)
{
	struct epoll_event readable = { .events = EPOLLIN };
	int fd = epoll_create1(0);

	(void)asked;
	epoll_ctl(fd, EPOLL_CTL_ADD, event[0], &readable);
	return error_of(epoll_wait(fd, &readable, 1, -1));
}

/* Signals -------------------------------------------------------------------------------------- */

static sigset_t usr2(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return set;
}

static int signal_timed(struct asked *asked)
{
	sigset_t set = usr2();

	return error_of(sigtimedwait(&set, NULL, &asked->time));
}

static int signal_info(struct asked *asked)
{
	sigset_t set = usr2();

	(void)asked;
	return error_of(sigwaitinfo(&set, NULL));
}

static int signal_plain(struct asked *asked)
{
	sigset_t set = usr2();
	int caught;

	(void)asked;
	return sigwait(&set, &caught);
}

static void send_usr2(pthread_t waiter)
{
	pthread_kill(waiter, SIGUSR2);
}

static void prepare(void)
{
	if (pipe(event))
		abort();
}

#define SPAN(title, function, result)                                                              \
	{ .name = title,                                                                           \
	  .clock = CLOCK_MONOTONIC,                                                                \
	  .call = function,                                                                        \
	  .expected = result,                                                                      \
	  .interruptible = true }

static const struct wait waits[] = {
	SPAN("nanosleep", nano, 0),
	SPAN("clock_nanosleep MONOTONIC", clock_nano, 0),
	{ .name = "clock_nanosleep BOOTTIME",
	  .clock = CLOCK_BOOTTIME,
	  .call = clock_nano,
	  .interruptible = true },
	SPAN("clock_nanosleep REALTIME", clock_nano_realtime, 0),
	SPAN("clock_nanosleep TAI", clock_nano_tai, 0),
	SPAN("usleep", micro, 0),
	{ .name = "sleep",
	  .clock = CLOCK_MONOTONIC,
	  .call = seconds,
	  .interruptible = true,
	  .whole_seconds = true },
	SPAN("thrd_sleep", c11, 0),
	SPAN("poll", polling, 0),
	SPAN("ppoll", ppolling, 0),
	SPAN("select", selecting, 0),
	SPAN("pselect", pselecting, 0),
	SPAN("epoll_wait", epoll, 0),
	SPAN("epoll_pwait", epoll_p, 0),
	SPAN("epoll_pwait2", epoll_p2, 0),
	SPAN("sigtimedwait", signal_timed, EAGAIN),
	{ .name = "poll without time-out",
	  .call = polling_forever,
	  .interruptible = true,
	  .end = raise_event },
	{ .name = "epoll_wait without time-out",
	  .call = epoll_forever,
	  .interruptible = true,
	  .end = raise_event },
	{ .name = "sigwaitinfo", .call = signal_info, .interruptible = true, .end = send_usr2 },
	{ .name = "sigwait", .call = signal_plain, .end = send_usr2 },
	{ 0 },
};

const struct family spans = { .name = "spans", .prepare = prepare, .waits = waits };
