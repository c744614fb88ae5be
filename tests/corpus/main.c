// SPDX-License-Identifier: MIT
/*
 * main.c - runs families of the corpus through their beats.
 *
 *     corpus list FAMILY...                name their interfaces
 *     corpus GO MILLISECONDS FAMILY...     run them; the waits take so long
 *
 * Of families after the word "interrupted", the waits that a signal interrupts take part, and one
 * comes after the move; after "cancelled", all of their waits, and the threads are cancelled.
 *
 * Prints {"ready": true} when everything is arranged; then it may be moved.  When the file GO
 * appears it has been, and the assertions are made.  The waits end by themselves, each a little
 * after the one before, lest all wake up at once.  The last line is {"done": true}.
 *
 * A busy machine wakes sleepers late.  So on each CPU a thread sleeps, by CLOCK_REALTIME, for a
 * moment at a time, and a wait reports how late those were when it began and when it ended.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "beats.h"

enum { MOST = 128, STAGGER_MS = 4, FOREVER_MS = 600000 };
enum { ROUND_NS = 2 * NS_PER_MS, ROUNDS = 100, SETTLED_ROUNDS = 20 };

static const struct family *const families[] = {
	&reads, &entry, &cputime, &deadlines, &timerfds, &timers, &spans, &sockets, &sysv, &life,
};
enum { FAMILIES = sizeof(families) / sizeof(families[0]) };

const char *go;
char *self;

void doze(int64_t ns)
{
	struct timespec until = to_timespec(read_ns(CLOCK_REALTIME) + ns);

	while (clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &until, NULL) == EINTR)
		;
}

bool moved(void)
{
	return !access(go, F_OK);
}

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

enum fate { UNDISTURBED, INTERRUPTED, CANCELLED };

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

static void begin_waits(const struct family *family, enum fate fate, long milliseconds)
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

static void start_waiting(void)
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

/* Ends those that have a fate, and then the others if they have no time-out. */
static void end_waits(enum fate fate)
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

/* Readings ------------------------------------------------------------------------------------- */

static struct {
	const struct reading *reading;
	struct observed observed;
} readings[MOST];
static struct {
	const struct measure *measure;
	int64_t last, leap;
	long backward;
} measures[MOST];
static struct {
	const struct check *check;
	long wrong;
} checks[MOST];
static int reading_count, measure_count, check_count;

static void take_in(const struct family *family)
{
	for (const struct reading *reading = family->readings; reading && reading->name;
	     reading++) {
		readings[reading_count].observed = nothing_observed;
		readings[reading_count++].reading = reading;
	}
	for (const struct measure *measure = family->measures; measure && measure->name; measure++)
		measures[measure_count++].measure = measure;
	for (const struct check *check = family->checks; check && check->name; check++)
		checks[check_count++].check = check;
}

/* CPU time grows no faster than the process's two threads and one child can use it. */
static void measure(int i, int64_t elapsed)
{
	int64_t now = measures[i].measure->read() * 1000, grown = now - measures[i].last;

	if (elapsed) {
		/* frozen, or without a CPU: it used none */
		if (elapsed < 100 * NS_PER_MS)
			grown -= 2 * elapsed;
		measures[i].backward += now < measures[i].last;
		if (grown > measures[i].leap)
			measures[i].leap = grown;
	}
	measures[i].last = now;
}

static void look_around(enum beat beat, int round)
{
	static int64_t before;
	int64_t now = read_ns(CLOCK_REALTIME);
	bool settled = beat != MEANWHILE && round % (ROUNDS / SETTLED_ROUNDS) == 0;

	for (int i = 0; i < measure_count; i++)
		measure(i, before ? now - before : 0);
	before = now;
	for (int i = 0; i < reading_count; i++) {
		if (settled || !readings[i].reading->settled)
			observe(readings[i].reading, &readings[i].observed, beat);
	}
	for (int i = 0; i < check_count; i++)
		checks[i].wrong += checks[i].check->wrong();
	doze(ROUND_NS);
}

static void report_readings(void)
{
	for (int i = 0; i < reading_count; i++)
		print_observed(readings[i].reading, &readings[i].observed);
	for (int i = 0; i < measure_count; i++)
		printf("{\"row\": \"%s\", \"kind\": \"measure\", \"backward\": %ld, "
		       "\"leap_ns\": %ld, \"exact\": %s}\n",
		       measures[i].measure->name, measures[i].backward, measures[i].leap,
		       measures[i].measure->exact ? "true" : "false");
	for (int i = 0; i < check_count; i++)
		printf("{\"row\": \"%s\", \"kind\": \"check\", \"wrong\": %ld}\n",
		       checks[i].check->name, checks[i].wrong);
}

/* ---------------------------------------------------------------------------------------------- */

static void list_row(const struct family *family, const char *row, bool interruptible)
{
	printf("{\"family\": \"%s\", \"row\": \"%s\", \"interruptible\": %s}\n", family->name, row,
	       interruptible ? "true" : "false");
}

static void list(const struct family *family)
{
	for (const struct reading *reading = family->readings; reading && reading->name; reading++)
		list_row(family, reading->name, false);
	for (const struct measure *measure = family->measures; measure && measure->name; measure++)
		list_row(family, measure->name, false);
	for (const struct check *check = family->checks; check && check->name; check++)
		list_row(family, check->name, false);
	for (const struct wait *wait = family->waits; wait && wait->name; wait++)
		list_row(family, wait->name, wait->interruptible);
	for (const struct life *life = family->lives; life && life->name; life++)
		list_row(family, life->name, false);
}

static int begin_lives(const struct family *family, int ready)
{
	int begun = 0;

	for (const struct life *life = family->lives; life && life->name; life++, begun++)
		begin_life(life, ready);
	return begun;
}

static void say(const char *what)
{
	printf("{\"%s\": true}\n", what);
	fflush(stdout);
}

static void await_children(void)
{
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
}

static const struct family *family_named(const char *name)
{
	for (int i = 0; i < FAMILIES; i++) {
		if (!strcmp(name, families[i]->name))
			return families[i];
	}
	fprintf(stderr, "there is no family %s\n", name);
	exit(2);
}

/* Once, though it may be named for its waits to be interrupted as well. */
static int prepare(const struct family *family, int ready)
{
	static const struct family *prepared[FAMILIES + 1];
	int i = 0;

	while (prepared[i] && prepared[i] != family)
		i++;
	if (prepared[i])
		return 0;
	prepared[i] = family;
	if (family->prepare)
		family->prepare();
	take_in(family);
	return begin_lives(family, ready);
}

static void arrange(char **arguments)
{
	long milliseconds = atol(*arguments++);
	enum fate fate = UNDISTURBED;
	int ready[2], lives = 0;
	char byte;

	if (pipe(ready))
		abort();
	for (; *arguments; arguments++) {
		if (!strcmp(*arguments, "interrupted")) {
			fate = INTERRUPTED;
		} else if (!strcmp(*arguments, "cancelled")) {
			fate = CANCELLED;
		} else {
			const struct family *family = family_named(*arguments);

			lives += prepare(family, ready[1]);
			begin_waits(family, fate, milliseconds);
		}
	}
	for (; lives; lives--) {
		if (read(ready[0], &byte, 1) != 1)
			abort();
	}
	start_waiting();
}

int main(int argc, char **argv)
{
	self = argv[0];
	if (argc < 3)
		return 2;
	if (!strcmp(argv[1], "continue"))
		return continue_life(argv + 2);
	if (!strcmp(argv[1], "list")) {
		for (int i = 2; i < argc; i++)
			list(family_named(argv[i]));
		return 0;
	}

	go = argv[1];
	arrange(argv + 2);
	for (int round = 0; round < ROUNDS; round++)
		look_around(ARRANGE, round);
	say("ready");
	for (int round = 0; !moved(); round++)
		look_around(MEANWHILE, round);
	for (int round = 0; round < ROUNDS; round++)
		look_around(ASSERT, round);
	report_readings();
	end_waits(INTERRUPTED);
	end_waits(CANCELLED);
	end_waits(UNDISTURBED);
	await_children();
	say("done");
	return 0;
}
