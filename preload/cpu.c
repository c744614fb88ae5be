// SPDX-License-Identifier: MIT
/*
 * cpu.c - CPU time goes on counting over migrations.
 *
 * To the new host's kernel a restored process has just begun.  What its threads had used before,
 * less what restoring them took, the supervisor writes to the page.  A task that never
 * moved pays one look at the page's count of migrations.
 */
#include <errno.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/times.h>
#include <unistd.h>

#include "timespec.h"

NEXT(getrusage);

#define TICKS_PER_SEC 100 /* USER_HZ, part of the kernel's ABI on x86-64 */

/* The kernel's encoding of CPU clocks of others (include/linux/posix-timers.h). */
#define CPU_CLOCK_KIND(id)                                                                         \
	((id) & 3) /* 0: user + system; 1: user; 2: scheduled; 3: no CPU clock                     \
		    */
#define CPU_CLOCK_THREAD(id) ((id) & 4)
#define CPU_CLOCK_PID(id) (~((id) >> 3)) /* 0: the caller */

static uint32_t own_id(long number)
{
	return (uint32_t)kernel_call(number, (const long[6]){ 0 });
}

static const struct ts_cpu *entry_of(uint32_t thread)
{
	for (uint32_t i = 0; i < TS_CPU_ENTRIES; i++) {
		const struct ts_cpu *cpu = &shim.cpu->entry[(thread + i) % TS_CPU_ENTRIES];

		if (cpu->thread == thread)
			return cpu;
		if (!cpu->thread)
			break;
	}
	return NULL;
}

static bool moved(void)
{
	attach_first();
	return unlikely(__atomic_load_n(&shim.clocks->migrations, __ATOMIC_RELAXED));
}

static const struct ts_cpu *own_process(void)
{
	return entry_of(own_id(SYS_getpid));
}

/* A thread that was created here may have the id of one that came along and ended. */
static const struct ts_cpu *own_thread(void)
{
	const struct ts_cpu *cpu = entry_of(own_id(SYS_gettid));
	uint64_t robust_list;
	size_t length;

	if (!cpu || cpu->thread == own_id(SYS_getpid))
		return cpu; /* exec changes the list of a first thread */
	if (kernel_call(SYS_get_robust_list,
			(const long[6]){ 0, (long)&robust_list, (long)&length }))
		return NULL;
	return robust_list == cpu->robust_list ? cpu : NULL;
}

static int64_t clock_elsewhere(clockid_t id)
{
	static const int kind_of[] = { -1, TS_CPU_USER, TS_CPU_TOTAL };
	const struct ts_cpu *cpu;
	const int64_t *used;
	int kind = TS_CPU_TOTAL;
	bool thread;

	if (id == CLOCK_PROCESS_CPUTIME_ID || id == CLOCK_THREAD_CPUTIME_ID) {
		thread = id == CLOCK_THREAD_CPUTIME_ID;
		cpu = thread ? own_thread() : own_process();
	} else if (id < 0 && CPU_CLOCK_KIND(id) != 3) {
		thread = CPU_CLOCK_THREAD(id);
		kind = kind_of[CPU_CLOCK_KIND(id)];
		if (CPU_CLOCK_PID(id))
			cpu = entry_of((uint32_t)CPU_CLOCK_PID(id));
		else
			cpu = thread ? own_thread() : own_process();
	} else {
		return 0;
	}
	if (!cpu)
		return 0;
	used = thread ? cpu->own : cpu->process;
	return kind < 0 ? used[TS_CPU_USER] + used[TS_CPU_SYSTEM] : used[kind];
}

int cpu_clock(clockid_t id, struct timespec *ts)
{
	struct timespec kernel;
	struct ts_time sum;
	uint64_t seen;
	int err;

	if ((id >= 0 && id != CLOCK_PROCESS_CPUTIME_ID && id != CLOCK_THREAD_CPUTIME_ID) ||
	    !moved()) {
		seen = generation();
		err = shim.kernel_clock(id, ts);
		/* moved for the first time meanwhile: what was read may be the new kernel's count
		 */
		if (id >= 0 && id != CLOCK_PROCESS_CPUTIME_ID && id != CLOCK_THREAD_CPUTIME_ID)
			return err;
		if (likely(still(seen)))
			return err;
	}
	do {
		seen = generation();
		err = shim.kernel_clock(id, &kernel);
		if (err)
			return err;
		sum = ts_add(from_timespec(kernel), ts_from_ns(moved() ? clock_elsewhere(id) : 0));
	} while (!still(seen));
	*ts = to_timespec(sum);
	return 0;
}

clock_t clock(void)
{
	struct timespec now;

	if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now))
		return -1;
	return now.tv_sec * CLOCKS_PER_SEC + now.tv_nsec / (TS_NSEC_PER_SEC / CLOCKS_PER_SEC);
}

static void add(struct timeval *to, int64_t ns)
{
	int64_t us = to->tv_usec + ns / 1000;

	to->tv_sec += us / 1000000;
	to->tv_usec = us % 1000000;
}

int getrusage(__rusage_who_t who, struct rusage *usage)
{
	const struct ts_cpu *cpu;
	const int64_t *used;
	uint64_t seen;

	do {
		attach_first();
		seen = generation();
		if (next_getrusage(who, usage))
			return -1;
		cpu = !moved() ? NULL : who == RUSAGE_THREAD ? own_thread() : own_process();
		if (cpu) {
			used = who == RUSAGE_THREAD     ? cpu->own
			       : who == RUSAGE_CHILDREN ? cpu->children
							: cpu->process;
			add(&usage->ru_utime, used[TS_CPU_USER]);
			add(&usage->ru_stime, used[TS_CPU_SYSTEM]);
		}
	} while (!still(seen));
	return 0;
}

void cpu_add_times(struct tms *times)
{
	const struct ts_cpu *cpu = moved() ? own_process() : NULL;
	const int64_t tick = TS_NSEC_PER_SEC / TICKS_PER_SEC;

	if (!cpu || !times)
		return;
	times->tms_utime += cpu->process[TS_CPU_USER] / tick;
	times->tms_stime += cpu->process[TS_CPU_SYSTEM] / tick;
	times->tms_cutime += cpu->children[TS_CPU_USER] / tick;
	times->tms_cstime += cpu->children[TS_CPU_SYSTEM] / tick;
}
