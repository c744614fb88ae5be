/* SPDX-License-Identifier: MIT */
/*
 * supervise.h - the other side of the page: what the supervisor does to it.
 *
 * Never linked into the shim.  cffi parses this header together with page.h; Python sees
 * all of it as timeshim._native.lib.
 */
#ifndef TIMESHIM_SUPERVISE_H
#define TIMESHIM_SUPERVISE_H

#include <stdbool.h>

#include "page.h"

/* All the clocks, read at one moment.  Nanoseconds; ticks. */
struct ts_clocks {
	int64_t time[TS_CLOCKS]; /* indexed by TS_MONOTONIC, TS_RAW, TS_BOOTTIME */
	int64_t coarse; /* CLOCK_MONOTONIC_COARSE */
	int64_t realtime;
	uint64_t tsc;
	int64_t spread; /* all of them were read within this many nanoseconds of monotonic */
};

/* Reads the calling process's kernel clocks (its time namespace included) and the TSC. */
void ts_read_clocks(struct ts_clocks *clocks);

/* kernel -> virtual, as a process of the task would read them in this epoch. */
void ts_to_virtual(struct ts_clocks *clocks, const struct ts_epoch *epoch);

/*
 * The epoch in which the virtual clocks go on from resume at the moment when the kernel's
 * read kernel.  tsc_ratio as from ts_ratio().
 */
void ts_begin_epoch(struct ts_epoch *epoch, const struct ts_clocks *resume,
		    const struct ts_clocks *kernel, uint64_t tsc_ratio);

/* Puts an epoch into force. */
void ts_publish(struct ts_clock_area *area, const struct ts_epoch *epoch);

/*
 * Makes the kernel deadlines of armed slots right for an epoch; only while no thread of
 * the task runs.  Slots come from the application and are trusted in nothing: one with an
 * impossible clock or time is skipped.  Returns how many were set.
 */
size_t ts_correct_slots(struct ts_slot *slot, size_t count, const struct ts_epoch *epoch);

/*
 * Notes, for the generation that is about to begin, the threads of a frozen process that will then
 * handle a signal; has the calls that those were in end as the kernel would have them; and holds
 * threads that could take another one's signal.  Returns what ts_release() is to be given a
 * moment after the thaw, added to held.
 */
struct ts_held;
struct ts_held *ts_find_signalled(struct ts_signal_area *area, uint64_t generation, int pid,
				  struct ts_held *held);
void ts_release(struct ts_held *held);

/* Is a thread to be let go by that? */
bool ts_is_held(const struct ts_held *held, int thread);

/* Notes a thread of which another host's page says so. */
void ts_note_signalled(struct ts_signal_area *area, uint32_t thread, uint64_t generation);

/* One leaf of CPUID into reg[4] (eax, ebx, ecx, edx); 0 if the CPU does not have it. */
int ts_cpuid(uint32_t leaf, uint32_t *reg);

/*
 * The TSC frequency by which the kernel converts perf timestamps (perf_event_open(2),
 * cap_user_time), in Hz; 0 if it does not say.
 */
double ts_perf_tsc_hz(void);

/* Address of the robust list of another thread (get_robust_list(2)); 0 if it cannot be told. */
uint64_t ts_robust_list(int thread);

/* A descriptor of our own for one of a process's (pidfd_getfd(2)); -1 if there is none. */
int ts_borrow_descriptor(int pid, int fd);

/*
 * Has a timerfd with an interval that rang, and waits to be read before it counts on, do so: else
 * nothing tells when it will ring next (timerfd_gettime(2) as do_timerfd_gettime() makes it).
 */
void ts_forward_timer(int fd);

/*
 * Sets a timerfd, in nanoseconds of its clock in our time namespace; ticks: how often it rang
 * without anybody reading it, which setting it would forget.
 */
void ts_set_timer(int fd, bool absolute, int64_t value, int64_t interval, uint64_t ticks);

/* unshare(2), setns(2) and mount(2), which Python 3.11 lacks: 0 or errno. */
int ts_unshare(int flags);
int ts_setns(int fd, int type);
int ts_mount(const char *source, const char *target, const char *type, unsigned long flags);

#endif
