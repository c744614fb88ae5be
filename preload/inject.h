/* SPDX-License-Identifier: MIT */
/*
 * inject.h - has a process make system calls that it does not know of.
 *
 * Some state of a process can be changed from nowhere but inside: its POSIX timers, its
 * interval timers, prctl(2).  So the supervisor stops all of its threads with ptrace(2), has one
 * execute a system call with registers of the supervisor's choice, and puts everything back.
 *
 *     struct ts_traced *process = ts_trace(pid);     its cgroup may be frozen
 *                                                    ... and must be thawed by now
 *     ts_inject(process, tid, SYS_..., arg);         any number of times
 *                                                    ... and may be frozen again by now
 *     ts_let_go(process, NULL);
 *
 * While a process is traced none of its threads runs, whatever its cgroup is told; one that is let
 * go of while the cgroup is frozen is frozen before it would run.  All calls must come from the
 * same thread.
 */
#ifndef TIMESHIM_INJECT_H
#define TIMESHIM_INJECT_H

#include <stdbool.h>
#include <stdint.h>

#define TS_SCRATCH 4096 /* bytes of memory in the process for what system calls read and write */

struct ts_traced;

/*
 * Stops all threads of a process; NULL and errno if it cannot be traced: it has a tracer already,
 * no thread of it can run, a seccomp filter would see the calls, or there is no memory.
 */
struct ts_traced *ts_trace(int pid);

/* A thread of it that can make system calls, best one that is in a system call already. */
int ts_traced_thread(const struct ts_traced *process);

/*
 * Has a thread make a system call that does not block: its result or -errno; -ESRCH if
 * there is no such thread, -ECHILD if the process was killed meanwhile.
 */
long ts_inject(struct ts_traced *process, int thread, long number, const int64_t *arg);

/*
 * Has every thread that is about to handle a fault begin to: nothing of the handler runs yet.  For
 * a fault that is pending CRIU takes for its parasite's own: the kernel hands out the first
 * one, blocked or not, once another is not blocked (dequeue_synchronous_signal() in
 * kernel/signal.c).  Before any ts_inject().
 */
void ts_begin_handlers(struct ts_traced *process);

/* Has a thread map TS_SCRATCH bytes, once, that system calls may read and write; 0 if it cannot. */
uint64_t ts_scratch(struct ts_traced *process, int thread);

/* Has it unmap them. */
void ts_return_scratch(struct ts_traced *process);

/* Copies to or from there; false if the process was killed. */
bool ts_write_scratch(struct ts_traced *process, unsigned int offset, const void *from,
		      unsigned int size);
bool ts_read_scratch(struct ts_traced *process, unsigned int offset, void *to, unsigned int size);

/*
 * Puts back what was changed, and lets all threads go on, but for those in held (supervise.h, NULL
 * if none), which ts_release() lets go.
 */
struct ts_held;
void ts_let_go(struct ts_traced *process, const struct ts_held *held);

#endif
