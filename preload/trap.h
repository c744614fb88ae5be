/* SPDX-License-Identifier: MIT */
/*
 * trap.h - what --tsc=trap is made of: instructions that read the TSC fault, and a handler of
 * SIGSEGV stands in for them.  See trap.c, and segv.c for what becomes of the application's own
 * SIGSEGV.
 */
#ifndef TIMESHIM_TRAP_H
#define TIMESHIM_TRAP_H

#include <signal.h>

#include "shim.h"

static inline bool trapping(void)
{
	attach_first();
	return unlikely(shim.clocks->tsc_trap);
}

/* trap.c: has the calling thread, and all that it starts, trap, if the page says so. */
void begin_trap(void);

/*
 * trap.c: around a call that starts a program: exec keeps the trap, and the dynamic linker reads
 * the counter before anybody handles SIGSEGV.  Neither changes errno.
 */
void pause_trap(void);
void resume_trap(void);

/* trap.c: does what an instruction would have done that reads the TSC; false if it is none. */
bool stand_in(const siginfo_t *info, ucontext_t *context);

/* segv.c: takes SIGSEGV from the application. */
void take_sigsegv(void);

/*
 * segv.c: a set of signals to block without SIGSEGV, which under a trap cannot be blocked, as
 * SIGKILL never can; a copy in room if it has to change.
 */
const sigset_t *blockable(const sigset_t *set, sigset_t *room);

/* segv.c: rt_sigaction(2) and rt_sigprocmask(2) with the kernel's own structures, for syscall(): as
 * syscall() returns. */
long raw_sigaction(const long *arg);
long raw_sigprocmask(const long *arg);

#endif
