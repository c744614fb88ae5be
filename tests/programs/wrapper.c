// SPDX-License-Identifier: MIT
/*
 * wrapper.c - a library that an application preloads, and that wraps clock_gettime() itself.
 *
 * It keeps what it read when its constructor ran.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>

static long calls;

/* As libfaketime and memory profilers do. */
int clock_gettime(clockid_t id, struct timespec *ts)
{
	static int (*next)(clockid_t, struct timespec *);

	calls++;
	if (!next)
		next = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	return next(id, ts);
}

long wrapper_calls(void)
{
	return calls;
}

struct timespec wrapper_constructed;

static void __attribute__((constructor)) construct(void)
{
	clock_gettime(CLOCK_MONOTONIC, &wrapper_constructed);
}
