// SPDX-License-Identifier: MIT
/*
 * cputime.c - every measure of the CPU time that a process, its threads and its children used.
 *
 * They use some first, so that a count which begins anew is seen to go back.
 */
#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <unistd.h>

#include "beats.h"

enum { BURN_MS = 150 };

static clockid_t helper_clock;

static int64_t read_us(clockid_t clock)
{
	return read_ns(clock) / 1000;
}

static void burn(void)
{
	int64_t end = read_us(CLOCK_THREAD_CPUTIME_ID) + BURN_MS * 1000;

	while (read_us(CLOCK_THREAD_CPUTIME_ID) < end)
		getppid(); /* some of it in the kernel */
}

static pthread_barrier_t burnt;

static void *help(void *unused)
{
	burn();
	pthread_barrier_wait(&burnt);
	for (;;)
		pause();
	return unused;
}

static void prepare(void)
{
	pthread_t helper;
	pid_t child = fork();

	if (!child) {
		burn();
		_exit(0);
	}
	waitpid(child, NULL, 0);
	pthread_barrier_init(&burnt, NULL, 2);
	pthread_create(&helper, NULL, help, NULL);
	pthread_getcpuclockid(helper, &helper_clock);
	burn();
	pthread_barrier_wait(&burnt);
}

static int64_t process_clock(void)
{
	return read_us(CLOCK_PROCESS_CPUTIME_ID);
}

static int64_t thread_clock(void)
{
	return read_us(CLOCK_THREAD_CPUTIME_ID);
}

static int64_t of_clock(void)
{
	return clock();
}

static int64_t of_helper(void)
{
	return read_us(helper_clock);
}

static int64_t of_getcpuclockid(void)
{
	clockid_t process;

	return clock_getcpuclockid(0, &process) ? -1 : read_us(process);
}

static int64_t us(struct timeval time)
{
	return time.tv_sec * 1000000 + time.tv_usec;
}

static struct rusage usage(int who)
{
	struct rusage usage;

	getrusage(who, &usage);
	return usage;
}

static int64_t self_user(void)
{
	return us(usage(RUSAGE_SELF).ru_utime);
}

static int64_t self_system(void)
{
	return us(usage(RUSAGE_SELF).ru_stime);
}

static int64_t thread_user(void)
{
	return us(usage(RUSAGE_THREAD).ru_utime);
}

static int64_t thread_system(void)
{
	return us(usage(RUSAGE_THREAD).ru_stime);
}

static int64_t children_user(void)
{
	return us(usage(RUSAGE_CHILDREN).ru_utime);
}

static int64_t children_system(void)
{
	return us(usage(RUSAGE_CHILDREN).ru_stime);
}

static struct tms ticks(void)
{
	struct tms now;

	times(&now);
	return now;
}

static int64_t tms_user(void)
{
	return ticks().tms_utime * 10000;
}

static int64_t tms_system(void)
{
	return ticks().tms_stime * 10000;
}

static int64_t tms_children_user(void)
{
	return ticks().tms_cutime * 10000;
}

static int64_t tms_children_system(void)
{
	return ticks().tms_cstime * 10000;
}

static const struct measure measures[] = {
	{ "clock_gettime PROCESS_CPUTIME_ID", process_clock, true },
	{ "clock_gettime THREAD_CPUTIME_ID", thread_clock, true },
	{ "pthread_getcpuclockid", of_helper, true },
	{ "clock_getcpuclockid", of_getcpuclockid, true },
	{ "clock()", of_clock, true },
	{ "getrusage SELF user", self_user, false },
	{ "getrusage SELF system", self_system, false },
	{ "getrusage THREAD user", thread_user, false },
	{ "getrusage THREAD system", thread_system, false },
	{ "getrusage CHILDREN user", children_user, false },
	{ "getrusage CHILDREN system", children_system, false },
	{ "times() tms_utime", tms_user, false },
	{ "times() tms_stime", tms_system, false },
	{ "times() tms_cutime", tms_children_user, false },
	{ "times() tms_cstime", tms_children_system, false },
	{ 0 },
};

const struct family cputime = { .name = "cputime", .prepare = prepare, .measures = measures };
