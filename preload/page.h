/* SPDX-License-Identifier: MIT */
/*
 * page.h - the page: one file per task, mapped by every process of the task.
 *
 * It is all that the shim (inside the application) and the supervisor (outside)
 * share, and this header is its only description: the C compiler reads it for the
 * shim, cffi reads it for Python.  It may therefore hold nothing but plain structs,
 * integer defines and one-line static assertions (which build.py drops for cffi).
 *
 * A field says who writes it.  Offsets within the file never move while
 * TIMESHIM_ABI stays the same: a task carries its own copy of the shim from host to
 * host, so a supervisor of another release must still understand its page.
 *
 *   0x0000  struct ts_clock_area   mapped read-only by the application
 *   0x1000  struct ts_task_area    mapped read-write by the application
 *   then    struct ts_cpu_area     mapped read-write by the application
 *   then    struct ts_signal_area  mapped read-only by the application
 */
#ifndef TIMESHIM_PAGE_H
#define TIMESHIM_PAGE_H

#include <stddef.h>
#include <stdint.h>

#define TIMESHIM_MAGIC 0x6d6968732d656d74 /* "tme-shim", little endian */
#define TIMESHIM_ABI 2

#define TS_TASK_AREA 4096 /* file offset of struct ts_task_area: its own mapping */
#define TS_CPU_AREA 4235264 /* file offset of struct ts_cpu_area: its own mapping */
#define TS_SIGNAL_AREA 12623872 /* file offset of struct ts_signal_area: its own mapping */
#define TS_SLOTS 65536 /* a power of two; untouched slots cost nothing (sparse) */

/* The clocks that are shifted; each indexes ts_epoch.offset. */
#define TS_MONOTONIC 0 /* and CLOCK_MONOTONIC_COARSE */
#define TS_RAW 1 /* CLOCK_MONOTONIC_RAW */
#define TS_BOOTTIME 2 /* and CLOCK_BOOTTIME_ALARM */
#define TS_CLOCKS 3

#define TS_SKIP_SIZE 1024

#define TS_RATIO_SHIFT 60 /* fixed point of ts_epoch.tsc_ratio: Q4.60 */

/* A point in time or a span; 0 <= nsec < 1e9 always, so negative spans have sec < 0. */
struct ts_time {
	int64_t sec;
	int64_t nsec;
};

/*
 * What turns kernel clocks into virtual ones while the task stays on one host.
 * Written by the supervisor only, and only into the copy that is not in use.
 */
struct ts_epoch {
	struct ts_time offset[TS_CLOCKS]; /* virtual = kernel + offset */
	struct ts_time coarse_floor; /* virtual MONOTONIC_COARSE is never below this: the
					destination's coarse clock may lag more than the source's */
	uint64_t tsc_ratio; /* virtual TSC = (hardware * tsc_ratio >> TS_RATIO_SHIFT) ... */
	uint64_t tsc_offset; /* ... + tsc_offset, modulo 2^64 */
};

/*
 * Readers take epoch[generation & 1], read the clock, and look at generation again
 * (a latch, as in the kernel's seqcount_latch_t).  The writer fills the other copy and
 * then increments generation.  Nobody waits for anybody: a writer that dies half way
 * leaves the copy in use intact.
 */
struct ts_clock_area {
	uint64_t magic; /* TIMESHIM_MAGIC; creator */
	uint32_t abi; /* TIMESHIM_ABI; creator */
	uint32_t size; /* of the file, in bytes; creator */
	char task[40]; /* id of the task, NUL-terminated; creator */
	uint64_t generation; /* supervisor; incremented whenever an epoch begins */
	struct ts_epoch epoch[2]; /* supervisor */
	uint64_t tsc_hz; /* virtual TSC frequency, for the life of the task; creator */
	uint64_t migrations; /* supervisor */
	uint64_t blackout_ns; /* sum over all migrations, real time; supervisor */
	int64_t arrived_ns; /* kernel BOOTTIME when the task first ran on this host: whatever
			       thread was started later did not come along; supervisor */
	uint64_t tsc_patch; /* non-zero: instructions that read the TSC are rewritten; creator */
	char tsc_skip[TS_SKIP_SIZE]; /* names of objects where they are not: each ends with a NUL,
					an empty one ends them; creator */
	uint64_t
		tsc_trap; /* non-zero: they trap, in every thread, and none is rewritten; creator */
};

/*
 * A wait in progress whose deadline is absolute.  The kernel is given the address of
 * kernel, so a deadline that was computed for the source's clocks can be corrected on
 * the destination before the system call is executed again.
 *
 * All fields are written by the thread that owns the slot; kernel is rewritten by the
 * supervisor too, while no thread of the task runs.
 */
struct ts_slot {
	uint32_t owner; /* thread id; 0 = free */
	uint32_t armed; /* non-zero: clock, deadline and kernel are valid */
	uint64_t frame; /* stack pointer of the owner: tells nested from left behind */
	struct ts_time deadline; /* virtual: what the application asked for */
	struct ts_time kernel; /* what the kernel is told */
	uint32_t clock; /* TS_MONOTONIC, TS_RAW or TS_BOOTTIME */
	uint32_t reserved[3];
};

/*
 * Which timers of timer_create() on CLOCK_REALTIME are set to an absolute time: the kernel tells
 * what is left of a timer, but not whether that is a span, which stands still while the task is
 * frozen, or ends at a time.  An entry is process id << 32 | the kernel's timer id; 0 = free, for
 * process ids begin at 1.  A timer's is in one of the TS_TIMER_WAYS places of its row; if all were
 * taken, the timer counts as set to a span.
 */
#define TS_TIMER_ROWS 256 /* row: (process id + timer id) % TS_TIMER_ROWS */
#define TS_TIMER_WAYS 16

struct ts_task_area {
	uint64_t attached; /* processes that the shim attached to, ever; application */
	uint64_t slots_exhausted; /* waits that found no free slot; application */
	uint64_t socket_timeouts; /* non-zero once a socket was given one; application */
	uint64_t interval_timers; /* non-zero once one was set by setitimer() or alarm();
				     application */
	uint64_t tsc_rewritten; /* instructions, in all processes ever; application */
	uint64_t tsc_raw; /* those that could not be, and read the hardware; application */
	uint64_t reserved[2];
	struct ts_slot slot[TS_SLOTS];
	uint64_t absolute_timer[TS_TIMER_ROWS][TS_TIMER_WAYS]; /* application */
};

/*
 * What a thread and, under its first thread's id, a process used on other hosts: CRIU makes
 * processes anew, so the kernel's counts begin at 0.  Virtual = kernel + this (ru_maxrss: the
 * larger of the two).  Written by the supervisor, before the task first runs on this host; then
 * children and parent by the process, as those of its children end that came along.
 */
#define TS_CPU_ENTRIES 32768 /* a power of two; placed by thread id, probed linearly */
#define TS_CPU_TOTAL 0 /* nanoseconds, exact */
#define TS_CPU_USER 1 /* the kernel tells these to a tick only: rounded up, never back */
#define TS_CPU_SYSTEM 2
#define TS_CPU_MINFLT 3 /* these as getrusage(2) counts them */
#define TS_CPU_MAJFLT 4
#define TS_CPU_INBLOCK 5
#define TS_CPU_OUBLOCK 6
#define TS_CPU_NVCSW 7
#define TS_CPU_NIVCSW 8
#define TS_CPU_MAXRSS 9 /* kilobytes */
#define TS_CPU_KINDS 10

struct ts_cpu {
	uint32_t thread; /* thread id; 0 = free, and the end of a probe */
	uint32_t parent; /* of a process that its parent has not waited for yet; else 0 */
	uint64_t robust_list; /* address of the thread's (get_robust_list(2)): ids are used again */
	int64_t own[TS_CPU_KINDS]; /* the thread's */
	int64_t process[TS_CPU_KINDS]; /* the process's, dead threads included */
	int64_t children[TS_CPU_KINDS]; /* of children that were waited for */
};

struct ts_cpu_area {
	struct ts_cpu entry[TS_CPU_ENTRIES];
};

/*
 * Threads that had a signal to handle when a generation began: what interrupted a wait of theirs
 * was that signal, and not only the freeze.  An entry never becomes wrong: a call looks for one
 * of a generation after its own beginning.  All fields are written by the supervisor, before it
 * publishes that generation.
 */
#define TS_SIGNALLED 4096 /* a power of two */
#define TS_SIGNALLED_NEAR 8 /* a thread's entry is one of so many from the one its id picks */

struct ts_signalled {
	uint32_t thread; /* thread id, as the thread itself knows it; 0 = free */
	uint32_t reserved;
	uint64_t generation;
};

struct ts_signal_area {
	struct ts_signalled entry[TS_SIGNALLED];
};

_Static_assert(sizeof(struct ts_time) == 16, "same layout as struct timespec on x86-64");
_Static_assert(sizeof(struct ts_slot) == 64, "one cache line, so owners do not contend");
_Static_assert(sizeof(struct ts_clock_area) <= TS_TASK_AREA, "the areas overlap");

_Static_assert(sizeof(struct ts_cpu) == 256, "a power of two, so none crosses a page");
_Static_assert(TS_CPU_AREA >= TS_TASK_AREA + sizeof(struct ts_task_area), "the areas overlap");
_Static_assert(TS_CPU_AREA % 4096 == 0, "a mapping begins there");

_Static_assert(TS_SIGNAL_AREA >= TS_CPU_AREA + sizeof(struct ts_cpu_area), "the areas overlap");
_Static_assert(TS_SIGNAL_AREA % 4096 == 0, "a mapping begins there");

#define TS_PAGE_SIZE 12689408 /* bytes of the file */
_Static_assert(TS_PAGE_SIZE == TS_SIGNAL_AREA + sizeof(struct ts_signal_area), "it is stale");

#endif
