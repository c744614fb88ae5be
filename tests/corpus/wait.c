// SPDX-License-Identifier: MIT
/*
 * wait.c - waits, each in a thread of its own, and when they ended.
 *
 * They end by themselves, each a little after the one before, lest all wake up at once.  A busy
 * machine wakes sleepers late.  So on each CPU a thread sleeps, by CLOCK_REALTIME, for a moment at
 * a time, and a wait reports how late those were when it began and when it ended.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "beats.h"

enum { MOST = 256, STAGGER_MS = 4, FOREVER_MS = 600000 };

/* How late the machine wakes threads up ---------------------------------------------------------
 */

enum { TICK_NS = 3 * NS_PER_MS, TICKS = 1 << 14, MOST_CPUS = 8 };

static struct ticker {
	int cpu;
	atomic_int ticks; /* the last one may not be over yet */
	struct tick {
		int64_t due, late;
	} tick[TICKS];
} ticker[MOST_CPUS];
static int tickers;

/* It is the deadline that is to be right: other programs on the CPU are nobody's fault. */
static void be_woken_first(void)
{
	struct sched_param least = { .sched_priority = sched_get_priority_min(SCHED_RR) };

	pthread_setschedparam(pthread_self(), SCHED_RR, &least); /* if it may */
}

static void *keep_ticking(void *arg)
{
	struct ticker *ticker = arg;
	cpu_set_t cpus;

	be_woken_first();
	CPU_ZERO(&cpus);
	CPU_SET(ticker->cpu, &cpus);
	sched_setaffinity(0, sizeof(cpus), &cpus);
	for (int i = 0;; i++) {
		struct tick *tick = &ticker->tick[i % TICKS];
		int64_t due = read_ns(CLOCK_REALTIME) + TICK_NS;
		struct timespec until = to_timespec(due);

		*tick = (struct tick){ .due = due };
		atomic_store(&ticker->ticks, i + 1);
		while (clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, NULL) == EINTR)
			;
		tick->late = read_ns(CLOCK_REALTIME) - due;
	}
	return NULL;
}

static void start_ticking(void)
{
	cpu_set_t cpus;
	pthread_t thread;

	sched_getaffinity(0, sizeof(cpus), &cpus);
	for (int cpu = 0; cpu < CPU_SETSIZE && tickers < MOST_CPUS; cpu++) {
		if (!CPU_ISSET(cpu, &cpus))
			continue;
		ticker[tickers].cpu = cpu;
		pthread_create(&thread, NULL, keep_ticking, &ticker[tickers++]);
	}
}

/* The latest that any of them was, of those that should have woken up between two times. */
static int64_t lateness_between(int64_t from, int64_t to)
{
	int64_t worst = 0, now = read_ns(CLOCK_REALTIME);

	for (int t = 0; t < tickers; t++) {
		for (int i = atomic_load(&ticker[t].ticks) - 1; i >= 0; i--) {
			const struct tick *tick = &ticker[t].tick[i % TICKS];
			int64_t late = tick->late ? tick->late : now - tick->due;

			if (tick->due + late < from)
				break;
			if (tick->due <= to && late > worst)
				worst = late;
		}
	}
	return worst;
}

/* Waits ---------------------------------------------------------------------------------------- */

static struct waiting {
	const struct wait *wait;
	enum fate fate;
	pthread_t thread;
	int64_t asked;
	_Atomic int64_t ended; /* when it was, if it does not end by itself */
} waiting[MOST];
static int waits;

static const char *clock_name(clockid_t clock)
{
	return clock == CLOCK_BOOTTIME   ? "boottime"
	       : clock == CLOCK_REALTIME ? "realtime"
					 : "monotonic";
}

static void *perform(void *arg)
{
	struct waiting *waiting = arg;
	const struct wait *wait = waiting->wait;
	struct asked asked = { .clock = wait->clock, .left = { -1, 0 } };
	int64_t real, start, took, end, due, late;
	bool is_ended = waiting->fate || wait->end;
	int err;

	be_woken_first();
	real = read_ns(CLOCK_REALTIME);
	start = read_ns(wait->clock);
	asked.time = to_timespec(waiting->asked + (wait->until ? start : 0));
	err = wait->call(&asked);
	took = read_ns(wait->clock) - start;
	end = read_ns(CLOCK_REALTIME);
	/* by its own clock it was due then: without the shim, anything */
	due = is_ended ? atomic_load(&waiting->ended) : end - (took - waiting->asked);
	if (due > end || due < end - 2l * NS_PER_S)
		due = end;
	late = lateness_between(due - NS_PER_MS, end);
	if (!is_ended)
		late += lateness_between(real - NS_PER_MS, real + NS_PER_MS);

	flockfile(stdout);
	printf("{\"row\": \"%s%s\", \"kind\": \"%s\", \"clock\": \"%s\", \"returned\": \"%s\", "
	       "\"expected\": \"%s\", \"asked_ns\": %ld, \"took_ns\": %ld, \"left_ns\": %ld, "
	       "\"begin_ns\": %ld, \"end_ns\": %ld, \"ended_ns\": %ld, \"machine_late_ns\": %ld}\n",
	       wait->name, waiting->fate == INTERRUPTED ? ", interrupted" : "",
	       is_ended ? "ended" : "wait", clock_name(wait->clock), strerrorname_np(err),
	       strerrorname_np(waiting->fate == INTERRUPTED ? EINTR : wait->expected),
	       waiting->asked, took, asked.left.tv_sec < 0 ? -1 : to_ns(asked.left), real, end,
	       (long)atomic_load(&waiting->ended), late);
	fflush(stdout);
	funlockfile(stdout);
	return NULL;
}

void add_waits(const struct family *family, enum fate fate, long milliseconds)
{
	for (const struct wait *wait = family->waits; wait && wait->name; wait++) {
		int64_t asked = fate ? FOREVER_MS : milliseconds + waits * STAGGER_MS;

		if (fate == INTERRUPTED && !wait->interruptible)
			continue;
		if (wait->whole_seconds)
			asked = (asked + 999) / 1000 * 1000;
		waiting[waits++] = (struct waiting){
			.wait = wait,
			.fate = fate,
			.asked = asked * NS_PER_MS,
		};
	}
}

static void handle(int signal)
{
	(void)signal;
}

void begin_waits(void)
{
	struct sigaction action = { .sa_handler = handle };
	sigset_t set;

	if (!waits)
		return;
	sigaction(SIGUSR1, &action, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2); /* for those who wait for a signal */
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	start_ticking();
	for (int i = 0; i < waits; i++)
		pthread_create(&waiting[i].thread, NULL, perform, &waiting[i]);
}

void end_waits(enum fate fate)
{
	int count = 0, cancelled = 0;

	/* first, for what ends one may end another */
	for (int i = 0; i < waits; i++) {
		if (waiting[i].fate == fate)
			atomic_store(&waiting[i].ended, read_ns(CLOCK_REALTIME));
	}
	for (int i = 0; i < waits; i++) {
		const struct wait *wait = waiting[i].wait;

		if (waiting[i].fate != fate)
			continue;
		if (fate == INTERRUPTED)
			pthread_kill(waiting[i].thread, SIGUSR1);
		else if (fate == CANCELLED)
			pthread_cancel(waiting[i].thread);
		else if (wait->end)
			wait->end(waiting[i].thread);
	}
	for (int i = 0; i < waits; i++) {
		void *result;

		if (waiting[i].fate != fate)
			continue;
		pthread_join(waiting[i].thread, &result);
		cancelled += result == PTHREAD_CANCELED;
		count++;
	}
	if (fate == CANCELLED && count)
		printf("{\"cancelled\": %d, \"of\": %d}\n", cancelled, count);
}
