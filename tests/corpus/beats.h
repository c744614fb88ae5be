/* SPDX-License-Identifier: MIT */
/*
 * beats.h - the corpus: every interface through which time enters or leaves a process, each in
 * three beats: arrange (take readings, begin a wait), be moved meanwhile, assert.
 *
 * A file is a family of interfaces, all of which run at once in one process: readings are taken in
 * turn by the first thread, and each wait has a thread of its own.  The names are those of
 * docs/surface.md.  What happened to each is printed as a line of JSON; whether that is right
 * tests/surface.py says, who also knows for how long the process was frozen.
 *
 * The yardstick is CLOCK_REALTIME, which no migration and no shim touches: every value is taken
 * between two of its readings, so it is known to lie in an interval however slow the machine is.
 */
#ifndef BEATS_H
#define BEATS_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum { NS_PER_MS = 1000000, NS_PER_S = 1000000000 };

#define ABSENT INT64_MIN /* what a reading returns if this libc or kernel does not offer it */

/* Reads a clock, in nanoseconds. */
struct reading {
	const char *name;
	clockid_t clock; /* that it should follow; passed to read() */
	int64_t (*read)(clockid_t clock);
	int64_t early, late; /* the clock was at most so much behind, or ahead of, what was read */
	bool settled; /* starts a process: not to be frozen in (CRIU cannot seize a vfork parent) */
};

/* Reads how much CPU time was used, in microseconds. */
struct measure {
	const char *name;
	int64_t (*read)(void);
	bool exact; /* and not counted in ticks */
};

/* Looks at what must be the same always, and returns how much of it is not. */
struct check {
	const char *name;
	int (*wrong)(void);
};

struct asked {
	clockid_t clock;
	struct timespec time; /* a span; with wait.until, a time on the clock */
	struct timespec left; /* what the call says is left; at first { -1, 0 }: nothing */
};

/* Waits for so long, or until then, and returns 0 or an error number. */
struct wait {
	const char *name;
	clockid_t clock; /* the one that the time is measured by */
	int (*call)(struct asked *asked);
	int expected; /* what it returns at the end of the time */
	bool until;
	bool whole_seconds;
	bool interruptible; /* a handler makes it return EINTR */
	void (*end)(pthread_t waiter); /* for a wait without a time-out: what it waits for */
};

/* A process of its own, which prints its line itself; begin() replaces the calling one by it. */
struct life {
	const char *name;
	void (*begin)(void);
};

struct family {
	const char *name;
	void (*prepare)(void);
	const struct reading *readings;
	const struct measure *measures;
	const struct check *checks;
	const struct wait *waits;
	const struct life *lives;
	/* each ends with an entry that has no name */
};

extern const struct family reads, entry, cputime, deadlines, timerfds, spans, sockets, sysv, timers,
	life;

extern const char *go; /* a file that appears when the process has been moved */
extern char *self; /* this program's path */

static inline int64_t to_ns(struct timespec ts)
{
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static inline struct timespec to_timespec(int64_t ns)
{
	return (struct timespec){ ns / NS_PER_S, ns % NS_PER_S };
}

static inline int64_t read_ns(clockid_t clock)
{
	struct timespec ts;

	return clock_gettime(clock, &ts) ? ABSENT : to_ns(ts);
}

static inline int error_of(long result)
{
	return result < 0 ? errno : 0;
}

/* main.c: sleeps by CLOCK_REALTIME. */
void doze(int64_t ns);
bool moved(void);

/* wait.c: adds the waits of a family, has all begin, and ends those that do not end by themselves.
 */
enum fate { UNDISTURBED, INTERRUPTED, CANCELLED };

void add_waits(const struct family *family, enum fate fate, long milliseconds);
void begin_waits(void);
void end_waits(enum fate fate);

/* observe.c: what becomes of a reading in the course of the beats. */
enum beat { ARRANGE, MEANWHILE, ASSERT };

struct observed {
	long backward;
	int64_t last, gained, least_high;
	int64_t low[3], high[3]; /* in each beat, how far the clock was ahead of REALTIME */
};

extern const struct observed nothing_observed;
void observe(const struct reading *reading, struct observed *observed, enum beat beat);
void print_observed(const struct reading *reading, const struct observed *observed);

/* life.c: has a life begin, which writes a byte to ready when it is arranged. */
void begin_life(const struct life *life, int ready);
/* And what its programs do. */
int continue_life(char **argv);

#endif
