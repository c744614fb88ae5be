// SPDX-License-Identifier: MIT
/*
 * cpu.c - CPU time, and all else that getrusage() counts, goes on over migrations.
 *
 * To the new host's kernel a restored process has just begun.  What its threads had used before,
 * less what restoring them took, the supervisor writes to the page.  A task that never
 * moved pays one look at the page's count of migrations.
 *
 * Ids are used again.  A process is told from one of the same id that came along and ended by its
 * start time; a thread, for which looking that up would cost too much, by its robust list.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/times.h>
#include <unistd.h>

#include "timespec.h"

NEXT(getrusage);

#define TICKS_PER_SEC 100 /* USER_HZ, part of the kernel's ABI on x86-64 */
#define TICK_NS (TS_NSEC_PER_SEC / TICKS_PER_SEC)

/* The kernel's encoding of CPU clocks of others (include/linux/posix-timers.h). */
#define CPU_CLOCK_KIND(id)                                                                         \
	((id) & 3) /* 0: user + system; 1: user; 2: scheduled; 3: no CPU clock                     \
		    */
#define CPU_CLOCK_THREAD(id) ((id) & 4)
#define CPU_CLOCK_PID(id) (~((id) >> 3)) /* 0: the caller */

/*
 * What the kernel tells nobody but the process itself, and so the supervisor cannot carry over:
 * of children all but times and faults, of threads that ended the rest.  Kept here for the
 * children that are waited for; for the process, its counts stay at what it was told, at least.
 */
static const int told_to_self_only[] = { TS_CPU_INBLOCK, TS_CPU_OUBLOCK, TS_CPU_NVCSW,
					 TS_CPU_NIVCSW, TS_CPU_MAXRSS };
static int64_t of_children[TS_CPU_KINDS], told[TS_CPU_KINDS];

/* Whether a process came along: its id, the migrations behind it, and the answer. */
static uint64_t known;

static uint32_t own_id(long number)
{
	return (uint32_t)kernel_call(number, (const long[6]){ 0 });
}

static bool moved(void)
{
	attach_first();
	return unlikely(__atomic_load_n(&shim.clocks->migrations, __ATOMIC_RELAXED));
}

static struct ts_cpu *entry_of(uint32_t thread)
{
	for (uint32_t i = 0; i < TS_CPU_ENTRIES; i++) {
		struct ts_cpu *cpu = &shim.cpu->entry[(thread + i) % TS_CPU_ENTRIES];

		if (cpu->thread == thread)
			return cpu;
		if (!cpu->thread)
			break;
	}
	return NULL;
}

/* Reads /proc/ID/stat past libc, which would use its locale; false if it is out of reach. */
static bool read_stat(uint32_t id, char *stat, size_t size)
{
	char path[] = "/proc/4294967295/stat", digits[sizeof("4294967295")];
	size_t length = 0;
	char *to = path + sizeof("/proc/") - 1;
	long fd, got;

	do
		digits[length++] = (char)('0' + id % 10);
	while (id /= 10);
	while (length)
		*to++ = digits[--length];
	strcpy(to, "/stat");
	fd = kernel_call(SYS_open, (const long[6]){ (long)path, O_RDONLY | O_CLOEXEC });
	if (fd < 0)
		return false;
	got = kernel_call(SYS_read, (const long[6]){ fd, (long)stat, (long)size - 1 });
	kernel_call(SYS_close, (const long[6]){ fd });
	stat[got > 0 ? got : 0] = 0;
	return got > 0;
}

/*
 * Was a process or thread started before the task first ran on this host?  Where that cannot be
 * found out, after a chroot(), ids are taken not to have been used again.
 */
static bool came_along(uint32_t id)
{
	char stat[1024];
	const char *field;
	int64_t ticks = 0;

	if (!read_stat(id, stat, sizeof(stat)))
		return true;
	field = strrchr(stat, ')'); /* field 2 of proc_pid_stat(5); the start time is 22 */
	for (int i = 0; field && i < 20; i++)
		field = strchr(field + 1, ' ');
	if (!field)
		return true;
	while (*++field >= '0' && *field <= '9')
		ticks = ticks * 10 + (*field - '0');
	return ticks * TICK_NS <= shim.clocks->arrived_ns;
}

/* The calling process's, if it came along. */
static struct ts_cpu *own_process(void)
{
	uint32_t self = own_id(SYS_getpid);
	struct ts_cpu *cpu = entry_of(self);
	uint64_t question, answer;

	if (!cpu)
		return NULL;
	question = (uint64_t)shim.clocks->migrations << 33 | (uint64_t)self << 1;
	answer = __atomic_load_n(&known, __ATOMIC_RELAXED);
	if ((answer & ~1UL) != question) {
		answer = question | came_along(self);
		__atomic_store_n(&known, answer, __ATOMIC_RELAXED);
	}
	return answer & 1 ? cpu : NULL;
}

static struct ts_cpu *own_thread(void)
{
	uint32_t self = own_id(SYS_gettid);
	struct ts_cpu *cpu;
	uint64_t robust_list;
	size_t length;

	if (self == own_id(SYS_getpid))
		return own_process(); /* exec changes the list of a first thread */
	cpu = entry_of(self);
	if (!cpu || kernel_call(SYS_get_robust_list,
				(const long[6]){ 0, (long)&robust_list, (long)&length }))
		return NULL;
	return robust_list == cpu->robust_list ? cpu : NULL;
}

static struct ts_cpu *other(uint32_t id)
{
	struct ts_cpu *cpu = entry_of(id);

	return cpu && came_along(id) ? cpu : NULL;
}

int64_t cpu_used_elsewhere(clockid_t id)
{
	static const int kind_of[] = { -1, TS_CPU_USER, TS_CPU_TOTAL };
	const struct ts_cpu *cpu;
	const int64_t *used;
	int kind = TS_CPU_TOTAL;
	bool thread;

	if (!moved())
		return 0;
	if (id == CLOCK_PROCESS_CPUTIME_ID || id == CLOCK_THREAD_CPUTIME_ID) {
		thread = id == CLOCK_THREAD_CPUTIME_ID;
		cpu = thread ? own_thread() : own_process();
	} else if (id < 0 && CPU_CLOCK_KIND(id) != 3) {
		uint32_t whose = (uint32_t)CPU_CLOCK_PID(id);

		thread = CPU_CLOCK_THREAD(id);
		kind = kind_of[CPU_CLOCK_KIND(id)];
		if (!whose || whose == own_id(thread ? SYS_gettid : SYS_getpid))
			cpu = thread ? own_thread() : own_process();
		else
			cpu = other(whose);
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
		sum = ts_add(from_timespec(kernel), ts_from_ns(cpu_used_elsewhere(id)));
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

static void raise_to(int64_t *highest, int64_t value)
{
	int64_t before = __atomic_load_n(highest, __ATOMIC_RELAXED);

	while (before < value && !__atomic_compare_exchange_n(highest, &before, value, false,
							      __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

static void combine(int64_t *sum, const int64_t *used)
{
	for (int kind = 0; kind < TS_CPU_KINDS; kind++) {
		int64_t value = __atomic_load_n(&used[kind], __ATOMIC_RELAXED);

		if (kind == TS_CPU_MAXRSS)
			raise_to(&sum[kind], value);
		else
			__atomic_fetch_add(&sum[kind], value, __ATOMIC_RELAXED);
	}
}

static int64_t nanoseconds(struct timeval time)
{
	return time.tv_sec * TS_NSEC_PER_SEC + time.tv_usec * 1000;
}

static struct timeval time_value(int64_t ns)
{
	return (struct timeval){ ns / TS_NSEC_PER_SEC, ns % TS_NSEC_PER_SEC / 1000 };
}

/* By kind, as the page has it; there is no total among them. */
static void from_rusage(int64_t *kinds, const struct rusage *usage)
{
	kinds[TS_CPU_TOTAL] = 0;
	kinds[TS_CPU_USER] = nanoseconds(usage->ru_utime);
	kinds[TS_CPU_SYSTEM] = nanoseconds(usage->ru_stime);
	kinds[TS_CPU_MINFLT] = usage->ru_minflt;
	kinds[TS_CPU_MAJFLT] = usage->ru_majflt;
	kinds[TS_CPU_INBLOCK] = usage->ru_inblock;
	kinds[TS_CPU_OUBLOCK] = usage->ru_oublock;
	kinds[TS_CPU_NVCSW] = usage->ru_nvcsw;
	kinds[TS_CPU_NIVCSW] = usage->ru_nivcsw;
	kinds[TS_CPU_MAXRSS] = usage->ru_maxrss;
}

static void to_rusage(struct rusage *usage, const int64_t *kinds)
{
	usage->ru_utime = time_value(kinds[TS_CPU_USER]);
	usage->ru_stime = time_value(kinds[TS_CPU_SYSTEM]);
	usage->ru_minflt = kinds[TS_CPU_MINFLT];
	usage->ru_majflt = kinds[TS_CPU_MAJFLT];
	usage->ru_inblock = kinds[TS_CPU_INBLOCK];
	usage->ru_oublock = kinds[TS_CPU_OUBLOCK];
	usage->ru_nvcsw = kinds[TS_CPU_NVCSW];
	usage->ru_nivcsw = kinds[TS_CPU_NIVCSW];
	usage->ru_maxrss = kinds[TS_CPU_MAXRSS];
}

/* Sees to it that what only the process itself is told never goes back. */
static void keep_up(int64_t *kinds, int64_t *highest)
{
	for (size_t i = 0; i < sizeof(told_to_self_only) / sizeof(told_to_self_only[0]); i++) {
		int kind = told_to_self_only[i];

		raise_to(&kinds[kind], __atomic_load_n(&highest[kind], __ATOMIC_RELAXED));
	}
}

int getrusage(__rusage_who_t who, struct rusage *usage)
{
	int64_t kinds[TS_CPU_KINDS];
	const struct ts_cpu *cpu;
	struct rusage kernel;
	uint64_t seen;

	do {
		attach_first();
		seen = generation();
		if (next_getrusage(who, &kernel))
			return -1;
		from_rusage(kinds, &kernel);
		cpu = !moved() ? NULL : who == RUSAGE_THREAD ? own_thread() : own_process();
		if (cpu)
			combine(kinds, who == RUSAGE_THREAD     ? cpu->own
				       : who == RUSAGE_CHILDREN ? cpu->children
								: cpu->process);
	} while (!still(seen));

	if (who == RUSAGE_CHILDREN && moved())
		keep_up(kinds, of_children);
	if (who == RUSAGE_SELF) {
		if (moved())
			keep_up(kinds, told);
		keep_up(told, kinds);
	}
	*usage = kernel; /* what Linux does not maintain as well */
	to_rusage(usage, kinds);
	return 0;
}

void cpu_add_times(struct tms *times)
{
	const struct ts_cpu *cpu = moved() ? own_process() : NULL;

	if (!cpu || !times)
		return;
	times->tms_utime += cpu->process[TS_CPU_USER] / TICK_NS;
	times->tms_stime += cpu->process[TS_CPU_SYSTEM] / TICK_NS;
	times->tms_cutime += cpu->children[TS_CPU_USER] / TICK_NS;
	times->tms_cstime += cpu->children[TS_CPU_SYSTEM] / TICK_NS;
}

void cpu_child_ended(pid_t child, struct rusage *usage)
{
	struct ts_cpu *theirs = moved() ? entry_of((uint32_t)child) : NULL;
	struct ts_cpu *ours = theirs ? own_process() : NULL;
	uint32_t parent = own_id(SYS_getpid);
	int64_t kinds[TS_CPU_KINDS];

	from_rusage(kinds, usage);
	/*
	 * Whoever was our child when we came here, and ends here, is waited for by us.  Once: the
	 * next child of that id has used nothing elsewhere.
	 */
	if (ours && __atomic_compare_exchange_n(&theirs->parent, &parent, 0, false,
						__ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
		combine(ours->children, theirs->process);
		combine(ours->children, theirs->children);
		combine(kinds, theirs->process);
		combine(kinds, theirs->children);
		to_rusage(usage, kinds);
	}
	combine(of_children, kinds);
}

/* In the child of a fork, which starts at 0. */
static void forget(void)
{
	memset(of_children, 0, sizeof(of_children));
	memset(told, 0, sizeof(told));
	known = 0;
}

void cpu_begin(void)
{
	struct rusage usage;

	if (!next_getrusage(RUSAGE_CHILDREN, &usage))
		from_rusage(of_children, &usage);
	pthread_atfork(NULL, NULL, forget);
}
