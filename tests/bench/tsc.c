// SPDX-License-Identifier: MIT
/*
 * tsc.c - what reading the TSC costs here, in nanoseconds: in a bare loop, and between fences.  The
 * fastest of many batches, since whatever else runs can only add to one.
 *
 *     tsc plain | inline [scaled]   scaled: in an epoch whose ratio is 1.25
 *     tsc few                       plain, fewer times: for readings that take microseconds
 *     tsc trapped                   with prctl(PR_SET_TSC) and a handler that reads it
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <ucontext.h>
#include <x86intrin.h>

#include "page.h"
#include "timeshim.h"

#define BATCH 2000

static int batches = 200;

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

#define MEASURE(name, read)                                                                        \
	static double name(void)                                                                   \
	{                                                                                          \
		int64_t best = INT64_MAX;                                                          \
		uint64_t sum = 0;                                                                  \
                                                                                                   \
		for (int batch = 0; batch < batches; batch++) {                                    \
			int64_t start = now(), took;                                               \
                                                                                                   \
			for (int i = 0; i < BATCH; i++)                                            \
				read;                                                              \
			took = now() - start;                                                      \
			if (took < best)                                                           \
				best = took;                                                       \
		}                                                                                  \
		__asm__ volatile("" : : "r"(sum));                                                 \
		return (double)best / BATCH;                                                       \
	}

MEASURE(plain_bare, sum += __rdtsc())
MEASURE(plain_fenced, (_mm_lfence(), sum += __rdtsc(), _mm_lfence()))
MEASURE(inline_bare, sum += timeshim_rdtsc())
MEASURE(inline_fenced, (_mm_lfence(), sum += timeshim_rdtsc(), _mm_lfence()))

static int scale(void)
{
	struct ts_clock_area *page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED,
					  open("/run/timeshim-task/page", O_RDWR), 0);

	if (page == MAP_FAILED)
		return 1;
	page->epoch[(page->generation + 1) & 1].tsc_ratio = 5ull << (TS_RATIO_SHIFT - 2);
	page->generation++;
	return 0;
}

/* The least that a handler has to do: let it through, and read. */
static void on_sigsegv(int number, siginfo_t *info, void *context)
{
	ucontext_t *at = context;
	uint64_t ticks;

	(void)number, (void)info;
	prctl(PR_SET_TSC, PR_TSC_ENABLE);
	ticks = __rdtsc();
	prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
	at->uc_mcontext.gregs[REG_RAX] = (greg_t)(uint32_t)ticks;
	at->uc_mcontext.gregs[REG_RDX] = (greg_t)(ticks >> 32);
	at->uc_mcontext.gregs[REG_RIP] += 2;
}

/* The vDSO cannot be read while it traps: fewer, and the clock in between. */
static double trapped(void)
{
	int64_t start = now();
	uint64_t sum = 0;

	prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
	for (int i = 0; i < BATCH; i++)
		sum += __rdtsc();
	prctl(PR_SET_TSC, PR_TSC_ENABLE);
	__asm__ volatile("" : : "r"(sum));
	return (double)(now() - start) / BATCH;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_sigsegv, .sa_flags = SA_SIGINFO };
	const char *how = argc > 1 ? argv[1] : "plain";

	if (argc > 2 && scale())
		return 1;
	if (!strcmp(how, "trapped")) {
		double least = 1e9;

		sigaction(SIGSEGV, &action, NULL);
		for (int i = 0; i < 20; i++) {
			double ns = trapped();

			least = ns < least ? ns : least;
		}
		printf("%.3f %.3f\n", least, least);
	} else if (!strcmp(how, "inline")) {
		printf("%.3f %.3f\n", inline_bare(), inline_fenced());
	} else {
		if (!strcmp(how, "few"))
			batches = 4;
		printf("%.3f %.3f\n", plain_bare(), plain_fenced());
	}
	return 0;
}
