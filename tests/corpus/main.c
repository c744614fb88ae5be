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
 * appears it has been, and the assertions are made.  The last line is {"done": true}.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "beats.h"

enum { MOST = 64 }; /* of each kind */
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
			add_waits(family, fate, milliseconds);
		}
	}
	for (; lives; lives--) {
		if (read(ready[0], &byte, 1) != 1)
			abort();
	}
	begin_waits();
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
