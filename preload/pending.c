// SPDX-License-Identifier: MIT
/*
 * pending.c - which threads of a frozen process have a signal to handle when it is thawed.
 *
 * For the kernel says EINTR in some waits whenever a thread is frozen, and the shim must know
 * whether a handler ran as well.  A signal for one thread is that thread's.  One for the process
 * the kernel meant for the first thread that does not block it (complete_signal() in
 * kernel/signal.c), and natively only that one would have woken up.  But frozen threads wait inside
 * get_signal(), and the first that runs on takes whatever it does not block.  So the others that
 * could are held with ptrace(2) until it has been taken, a moment after the thaw.
 *
 * Nothing here may fail: what cannot be seen or held is as it would be without this file.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "supervise.h"

#ifndef SYS_futex_waitv /* Linux 5.16 */
#define SYS_futex_waitv 449
#endif

enum { NS_PER_MS = 1000000, PAUSE_NS = 20000, PATIENCE_MS = 100 };

struct thread {
	int id; /* as we number it */
	uint32_t inner; /* as it does itself */
	char state; /* proc_pid_status(5) */
	bool traced; /* by us, for another purpose: stopped already (inject.h) */
	uint64_t own, shared; /* pending for it alone, and for any thread of its process */
	uint64_t blocked, caught;
	uint64_t taken; /* of shared, what is meant for it */
};

struct ts_held {
	struct ts_held *next;
	int pid;
	uint64_t signals; /* that another thread must have taken before these run */
	size_t count;
	int thread[];
};

static const char *field(const char *status, const char *name)
{
	const char *at = strstr(status, name);

	return at ? at + strlen(name) : "";
}

static bool look_at(struct thread *thread, int pid, int id)
{
	char path[64], status[4096];
	const char *ids;
	ssize_t size;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/status", pid, id);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	size = fd < 0 ? -1 : read(fd, status, sizeof(status) - 1);
	if (fd >= 0)
		close(fd);
	if (size <= 0)
		return false;
	status[size] = '\0';

	*thread = (struct thread){
		.id = id,
		.state = *field(status, "\nState:\t"),
		.traced = atoi(field(status, "\nTracerPid:\t")) == getpid(),
		.own = strtoull(field(status, "\nSigPnd:\t"), NULL, 16),
		.shared = strtoull(field(status, "\nShdPnd:\t"), NULL, 16),
		.blocked = strtoull(field(status, "\nSigBlk:\t"), NULL, 16),
		.caught = strtoull(field(status, "\nSigCgt:\t"), NULL, 16),
	};
	/* one number for each pid namespace, from ours to the thread's */
	ids = field(status, "\nNSpid:");
	while (*ids == '\t')
		thread->inner = (uint32_t)strtoul(ids + 1, (char **)&ids, 10);
	return true;
}

/* All threads of a process, the first one first; NULL if it is gone. */
static struct thread *look_at_all(int pid, size_t *count)
{
	struct thread *threads = NULL, *more;
	struct dirent *entry;
	size_t room = 0;
	char path[32];
	DIR *directory;

	*count = 0;
	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	directory = opendir(path);
	while (directory && (entry = readdir(directory))) {
		if (*count == room) {
			more = realloc(threads, (room = 2 * room + 16) * sizeof(*threads));
			if (!more)
				break;
			threads = more;
		}
		if (entry->d_name[0] != '.' && look_at(&threads[*count], pid, atoi(entry->d_name)))
			++*count;
	}
	if (directory)
		closedir(directory);
	return threads;
}

/* Into its own place, else into a free one, else over the entry that has been there longest. */
void ts_note_signalled(struct ts_signal_area *area, uint32_t thread, uint64_t generation)
{
	struct ts_signalled *best = NULL;

	for (uint32_t i = 0; i < TS_SIGNALLED_NEAR; i++) {
		struct ts_signalled *entry = &area->entry[(thread + i) % TS_SIGNALLED];

		if (entry->thread == thread) {
			best = entry;
			break;
		}
		if (!best ||
		    (best->thread && (!entry->thread || entry->generation < best->generation)))
			best = entry;
	}
	best->thread = thread;
	best->generation = generation;
}

static void doze(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = PAUSE_NS }, NULL);
}

/* A frozen thread in any other state than S is out of a signal's reach: stopped, or in vfork(2). */
static bool hold(const struct thread *thread)
{
	if (thread->traced)
		return true;
	if (thread->state != 'S' || ptrace(PTRACE_SEIZE, thread->id, NULL, NULL))
		return false; /* somebody debugs it, or we may not */
	ptrace(PTRACE_INTERRUPT, thread->id, NULL, NULL);
	return true;
}

static void await_held(const struct thread *thread)
{
	if (thread->traced)
		return;
	for (int pause = 0; pause < PATIENCE_MS * NS_PER_MS / PAUSE_NS; pause++) {
		if (waitpid(thread->id, NULL, __WALL | WNOHANG))
			return;
		doze();
	}
}

/* As which a call that a signal ends has failed inside the kernel (include/linux/errno.h), or 0. */
static int restart_error(const struct user_regs_struct *call)
{
	enum { ERESTARTSYS = 512, ERESTARTNOHAND = 514 };

	switch (call->rax) {
	case SYS_clock_nanosleep:
		return call->rsi & TIMER_ABSTIME ? ERESTARTNOHAND : 0;
	case SYS_msgrcv:
	case SYS_msgsnd:
	case SYS_pause:
	case SYS_ppoll:
	case SYS_pselect6:
	case SYS_rt_sigsuspend:
	case SYS_select:
		return ERESTARTNOHAND;

	case SYS_fcntl:
		return call->rsi == F_SETLKW || call->rsi == F_OFD_SETLKW ? ERESTARTSYS : 0;
	case SYS_futex:
		switch (call->rsi & FUTEX_CMD_MASK) {
		case FUTEX_WAIT:
		case FUTEX_WAIT_BITSET:
			return ERESTARTSYS;
		default:
			return 0;
		}
	case SYS_accept:
	case SYS_accept4:
	case SYS_connect:
	case SYS_flock:
	case SYS_futex_waitv:
	case SYS_mq_timedreceive:
	case SYS_mq_timedsend:
	case SYS_read:
	case SYS_readv:
	case SYS_recvfrom:
	case SYS_recvmmsg:
	case SYS_recvmsg:
	case SYS_sendmmsg:
	case SYS_sendmsg:
	case SYS_sendto:
	case SYS_wait4:
	case SYS_waitid:
	case SYS_write:
	case SYS_writev:
		return ERESTARTSYS;
	default:
		return 0;
	}
}

static bool executed_again(int thread, const struct user_regs_struct *regs)
{
	long code;

	errno = 0;
	code = ptrace(PTRACE_PEEKTEXT, thread, regs->rip, NULL);
	/* the instruction has left in rcx what comes behind it, unless this is the first time */
	return !errno && (code & 0xffff) == 0x050f && regs->rcx == regs->rip + 2;
}

/*
 * Whether a call that a signal has interrupted is executed again or fails with EINTR, the kernel
 * decides when it knows whether a handler runs, and with which flags (handle_signal() in
 * arch/x86/kernel/signal.c).  CRIU has decided before (compel's get_task_regs()): again, so that
 * the handler would come before a call that nothing ends.  So put it back to before that decision.
 */
static void leave_decision_to_kernel(const struct thread *thread)
{
	struct user_regs_struct regs;

	if (!hold(thread))
		return;
	await_held(thread);
	if (!ptrace(PTRACE_GETREGS, thread->id, NULL, &regs) && restart_error(&regs) &&
	    executed_again(thread->id, &regs)) {
		regs.orig_rax = regs.rax;
		regs.rax = -restart_error(&regs);
		regs.rip += 2;
		ptrace(PTRACE_SETREGS, thread->id, NULL, &regs);
	}
	if (!thread->traced)
		ptrace(PTRACE_DETACH, thread->id, NULL, NULL);
}

static struct ts_held *hold_others(int pid, const struct thread *threads, size_t count,
				   uint64_t shared, struct ts_held *next)
{
	struct ts_held *held = malloc(sizeof(*held) + count * sizeof(held->thread[0]));

	if (!held)
		return next;
	*held = (struct ts_held){ .next = next, .pid = pid, .signals = shared };
	for (size_t i = 0; i < count; i++)
		if (!threads[i].taken && shared & ~threads[i].blocked && hold(&threads[i]))
			held->thread[held->count++] = threads[i].id;
	for (size_t i = 0; i < count; i++)
		if (ts_is_held(held, threads[i].id))
			await_held(&threads[i]);
	return held;
}

struct ts_held *ts_find_signalled(struct ts_signal_area *area, uint64_t generation, int pid,
				  struct ts_held *held)
{
	uint64_t shared = 0;
	struct thread first, *threads;
	size_t count;

	if (!look_at(&first, pid, pid) || !first.caught)
		return held;
	threads = look_at_all(pid, &count);
	for (size_t i = 0; i < count; i++) {
		threads[i].taken = first.shared & first.caught & ~threads[i].blocked & ~shared;
		shared |= threads[i].taken;
		if (!threads[i].taken && !(threads[i].own & first.caught & ~threads[i].blocked))
			continue;
		ts_note_signalled(area, threads[i].inner, generation);
		leave_decision_to_kernel(&threads[i]);
	}
	if (shared)
		held = hold_others(pid, threads, count, shared, held);
	free(threads);
	return held;
}

bool ts_is_held(const struct ts_held *held, int thread)
{
	for (; held; held = held->next)
		for (size_t i = 0; i < held->count; i++)
			if (held->thread[i] == thread)
				return true;
	return false;
}

void ts_release(struct ts_held *held)
{
	while (held) {
		struct ts_held *next = held->next;
		struct thread first;

		for (int pause = 0; held->count && pause < PATIENCE_MS * NS_PER_MS / PAUSE_NS;
		     pause++) {
			if (!look_at(&first, held->pid, held->pid) || first.state == 'T' ||
			    !(first.shared & held->signals))
				break;
			doze();
		}
		for (size_t i = 0; i < held->count; i++)
			ptrace(PTRACE_DETACH, held->thread[i], NULL, NULL);
		free(held);
		held = next;
	}
}
