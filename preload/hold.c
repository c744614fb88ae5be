// SPDX-License-Identifier: MIT
/*
 * hold.c - see hold.h.
 *
 * To set a timer, even to nothing, discards its signal if that is pending (Linux 6.13 and later),
 * and which of two signals of a timer is pending nobody can tell.  So one that is about to ring is
 * let ring, and one that has rung is left alone.  Whatever rings here rings before the task's
 * clocks are read for its freeze, hence not too early.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include "arith.h"
#include "hold.h"

#define SOON 500000 /* in nanoseconds: much longer than it takes to stop a timer */
#define TIGHT 50000 /* in nanoseconds: how long reading a clock and a timer may take together */
#define ATTEMPTS 5 /* on a busy machine, until it does */
#define PATIENCE 3 /* how often one timer is waited for; short intervals without a signal go on */
#define QUEUE 32 /* signals to look at at once */

/* Offsets within the scratch memory. */
#define NEW 0
#define OLD 64

static int64_t read_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return ts.tv_sec * TS_NSEC_PER_SEC + ts.tv_nsec;
}

static int64_t timespec_ns(struct timespec ts)
{
	return ts_to_ns((struct ts_time){ ts.tv_sec, ts.tv_nsec });
}

static struct timespec to_timespec(int64_t ns)
{
	return (struct timespec){ ns / TS_NSEC_PER_SEC, ns % TS_NSEC_PER_SEC };
}

static int64_t timeval_ns(struct timeval tv)
{
	return ts_to_ns((struct ts_time){ tv.tv_sec, tv.tv_usec * 1000 });
}

/* Rounded up: late by less than a microsecond, but not early. */
static struct timeval to_timeval(int64_t ns)
{
	int64_t us = ns / 1000 + (ns % 1000 != 0);

	return (struct timeval){ us / 1000000, us % 1000000 };
}

/* A process, and what is needed over and over to have it set timers. */
struct holder {
	struct ts_traced *process;
	int thread;
	int64_t scratch;
};

static bool begin(struct holder *holder, struct ts_traced *process)
{
	holder->process = process;
	holder->thread = ts_traced_thread(process);
	holder->scratch = (int64_t)ts_scratch(process, holder->thread);
	return holder->scratch;
}

static int64_t now(const struct ts_timer *timer)
{
	return timer->by == TS_BY_CPU ? 0 : read_ns(timer->clock);
}

/* What is left of a timer, and when; new: what to set it to, or NULL to leave it. */
static bool exchange(const struct holder *holder, struct ts_timer *timer, int flags,
		     const struct itimerspec *new)
{
	const int64_t in = holder->scratch + NEW, out = holder->scratch + OLD;
	struct itimerval new_val, old_val;
	struct itimerspec old;
	long ret;

	if (timer->interval_timer) {
		if (new) {
			new_val.it_interval = to_timeval(timespec_ns(new->it_interval));
			new_val.it_value = to_timeval(timespec_ns(new->it_value));
			if (!ts_write_scratch(holder->process, NEW, &new_val, sizeof(new_val)))
				return false;
		}
		ret = new ? ts_inject(holder->process, holder->thread, SYS_setitimer,
				      (const int64_t[6]){ timer->id, in, out })
			  : ts_inject(holder->process, holder->thread, SYS_getitimer,
				      (const int64_t[6]){ timer->id, out });
	} else {
		if (new && !ts_write_scratch(holder->process, NEW, new, sizeof(*new)))
			return false;
		ret = new ? ts_inject(holder->process, holder->thread, SYS_timer_settime,
				      (const int64_t[6]){ timer->id, flags, in, out })
			  : ts_inject(holder->process, holder->thread, SYS_timer_gettime,
				      (const int64_t[6]){ timer->id, out });
	}
	/* after the kernel did, so that the error makes it late by microseconds and never early */
	timer->read = now(timer);
	if (ret)
		return false;
	if (timer->interval_timer) {
		if (!ts_read_scratch(holder->process, OLD, &old_val, sizeof(old_val)))
			return false;
		timer->left = timeval_ns(old_val.it_value);
		timer->interval = timeval_ns(old_val.it_interval);
	} else {
		if (!ts_read_scratch(holder->process, OLD, &old, sizeof(old)))
			return false;
		timer->left = timespec_ns(old.it_value);
		timer->interval = timespec_ns(old.it_interval);
	}
	return true;
}

/* Is a signal of this POSIX timer pending? */
static bool has_rung(const struct holder *holder, const struct ts_timer *timer)
{
	struct __ptrace_peeksiginfo_args which = { .nr = QUEUE };
	siginfo_t queue[QUEUE];
	long found;

	if (!timer->thread)
		which.flags = PTRACE_PEEKSIGINFO_SHARED;
	do {
		found = ptrace(PTRACE_PEEKSIGINFO, timer->thread ? timer->thread : holder->thread,
			       &which, queue);
		for (long i = 0; i < found; i++) {
			if (queue[i].si_code == SI_TIMER && queue[i].si_timerid == timer->id)
				return true;
		}
		which.off += QUEUE;
	} while (found == QUEUE);
	return false;
}

static bool look(const struct holder *holder, struct ts_timer *timer)
{
	int64_t before;

	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		before = now(timer);
		if (!exchange(holder, timer, 0, NULL))
			return false;
		if (timer->read - before < TIGHT)
			break;
	}
	return true;
}

static bool hold(const struct holder *holder, struct ts_timer *timer)
{
	static const struct itimerspec none;
	struct ts_timer last;
	bool rung;

	for (int patience = PATIENCE;; patience--) {
		if (!look(holder, timer))
			return false;
		timer->state = TS_UNSET;
		/* what is left of an interval timer that has rung, the kernel does not say */
		if (!timer->left) {
			timer->left = timer->interval;
			timer->state = timer->interval ? TS_RUNG : TS_UNSET;
			return true;
		}
		rung = !timer->interval_timer && timer->interval && timer->signals &&
		       has_rung(holder, timer);
		if (rung) {
			timer->state = TS_RUNG;
			return true;
		}
		if (!timer->signals || timer->by == TS_BY_CPU || timer->left > SOON || !patience)
			break;
		nanosleep(&(struct timespec){ .tv_nsec = timer->left }, NULL);
	}
	last = *timer;
	if (!exchange(holder, &last, 0, &none))
		return false;
	timer->state = TS_HELD;
	/* it rang in between after all, unheard of: it will again as soon as the task runs */
	if (!last.left || last.left > timer->left)
		timer->left = 0;
	return true;
}

bool ts_hold(struct ts_traced *process, struct ts_timer *timer, size_t count)
{
	struct holder holder;
	bool all = true;

	if (!begin(&holder, process))
		return false;
	for (; count; timer++, count--) {
		if (!hold(&holder, timer)) {
			timer->state = TS_UNSET;
			all = false;
		}
	}
	ts_return_scratch(process);
	return all;
}

static bool set_again(const struct holder *holder, const struct ts_timer *timer, int64_t ahead)
{
	struct itimerspec setting = { .it_interval = to_timespec(timer->interval) };
	struct ts_timer replaced = *timer;
	int64_t before, value = timer->due - ahead;

	if (timer->by != TS_BY_SPAN) {
		setting.it_value = to_timespec(value > 0 ? value : 1);
		return exchange(holder, &replaced, timer->by == TS_BY_CPU ? 0 : TIMER_ABSTIME,
				&setting);
	}
	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		before = now(timer);
		value = timer->due - ahead - before;
		setting.it_value = to_timespec(value > 0 ? value : 1);
		if (!exchange(holder, &replaced, 0, &setting))
			return false;
		/* once is enough for one that may have rung already */
		if (replaced.read - before < TIGHT || value < SOON)
			break;
	}
	return true;
}

size_t ts_set_again(struct ts_traced *process, const struct ts_timer *timer, size_t count,
		    bool rung, const int64_t *ahead)
{
	struct holder holder;
	size_t failed = 0;

	if (!begin(&holder, process))
		return count;
	for (; count; timer++, count--) {
		if (timer->state == TS_HELD || (timer->state == TS_RUNG && rung))
			failed += !set_again(&holder, timer, ahead[timer->by]);
	}
	ts_return_scratch(process);
	return failed;
}
