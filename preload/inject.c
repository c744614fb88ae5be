// SPDX-License-Identifier: MIT
/*
 * inject.c - see inject.h.
 *
 * What must not change under a thread that makes system calls for us:
 *  - its registers.  One that was stopped in a system call of its own has the kernel's note in them
 *    that it be restarted, which orig_rax = -1 keeps the kernel from doing for ours.  They
 *    are put back while the thread is in a stop inside of get_signal(), the place from which the
 * kernel goes on to restart the call (arch_do_signal_or_restart); from the exit of a system call it
 *    would not;
 *  - its signal mask, which is full meanwhile: a signal that is pending stays so until it is let
 * go;
 *  - its rseq_cs (rseq(2)), which the kernel clears when it sees the thread run elsewhere, so that
 * it would not abort a critical section that the thread was in;
 *  - its scheduling, which is the supervisor's meanwhile, and on the supervisor's CPU: else each of
 * the many switches to it would wait its turn on a busy machine, and wake another CPU on an idle
 * one.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inject.h"
#include "supervise.h"

#ifndef PTRACE_GET_RSEQ_CONFIGURATION /* glibc 2.34 */
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
struct __ptrace_rseq_configuration {
	uint64_t rseq_abi_pointer;
	uint32_t rseq_abi_size, signature, flags, pad;
};
#endif

#define SYSCALL_STOP (SIGTRAP | 0x80) /* PTRACE_O_TRACESYSGOOD */
#define RSEQ_CS 8 /* offset in struct rseq, linux/rseq.h */

/* The first version of struct sched_attr, sched_setattr(2), which only newer libcs declare. */
struct scheduling {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

struct thread {
	int id; /* 0: it has ended */
	bool used; /* what follows is to be put back */
	struct user_regs_struct regs;
	uint64_t mask;
	struct scheduling scheduling;
	bool hurried; /* scheduling is to be put back */
	cpu_set_t cpus;
	bool near; /* cpus is to be put back */
	uint64_t rseq_cs_at, rseq_cs; /* its address, 0 if there is none, and contents */
};

struct ts_traced {
	int pid;
	int memory; /* descriptor of /proc/PID/mem */
	bool stopped; /* a SIGSTOP came while it was traced */
	uint64_t gate; /* address of a system call instruction */
	cpu_set_t here; /* the CPU on which both it and we run while it makes system calls for us */
	int worker; /* the thread that mapped the scratch memory */
	uint64_t scratch; /* its address; 0: not mapped yet */
	size_t count;
	struct thread thread[];
};

/*
 * Waits for a thread's next stop: which signal, and for ptrace's own events their number << 8.
 * -1: it has ended.
 */
static int await_stop(struct thread *thread)
{
	int status;

	while (waitpid(thread->id, &status, __WALL) < 0) {
		if (errno != EINTR)
			goto ended;
	}
	if (WIFSTOPPED(status))
		return status >> 8;
ended:
	thread->id = 0;
	return -1;
}

/*
 * Waits until a thread that was interrupted, or that stops anyway, does so where no signal has been
 * taken from the queue for it.
 */
static bool await_event(struct ts_traced *process, struct thread *thread)
{
	for (;;) {
		int stop = await_stop(thread);

		if (stop < 0)
			return false;
		if (stop >> 8 == PTRACE_EVENT_STOP)
			return true;
		/* the mask is full, so it can only be SIGSTOP; or not yet ours, then it is
		 * delivered */
		if (stop == SIGSTOP && thread->used) {
			process->stopped = true;
			stop = 0;
		}
		ptrace(PTRACE_CONT, thread->id, 0, stop == SYSCALL_STOP ? 0 : stop);
	}
}

static bool read_file(char *text, size_t size, const char *format, int pid, int thread)
{
	char path[64];
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), format, pid, thread);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	got = read(fd, text, size - 1);
	close(fd);
	if (got < 0)
		return false;
	text[got] = '\0';
	return true;
}

/* State of a thread as in proc_pid_stat(5); 0 if it has ended. */
static char state_of(int pid, int thread)
{
	char text[256], *name_end;

	if (!read_file(text, sizeof(text), "/proc/%d/task/%d/stat", pid, thread))
		return 0;
	name_end = strrchr(text, ')');
	return name_end ? name_end[2] : 0;
}

/* Would a filter see the system calls of this thread? */
static bool is_filtered(int pid, int thread)
{
	char text[4096], *line;

	if (!read_file(text, sizeof(text), "/proc/%d/task/%d/status", pid, thread))
		return false;
	line = strstr(text, "\nSeccomp:\t");
	return line && line[10] != '0';
}

static bool seize(int pid, int thread)
{
	if (!ptrace(PTRACE_SEIZE, thread, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_SUSPEND_SECCOMP))
		return true;
	/* a kernel, or a supervisor in a container, that cannot suspend filters */
	if (is_filtered(pid, thread))
		return false;
	return !ptrace(PTRACE_SEIZE, thread, 0, PTRACE_O_TRACESYSGOOD);
}

/* One that waits for its vfork child cannot stop, nor can it run before that does. */
static bool cannot_run(char state)
{
	return strchr("DZXx", state) != NULL; /* and one that has ended: 0 */
}

static struct ts_traced *with_threads_of(int pid)
{
	struct ts_traced *process = calloc(1, sizeof(*process));
	struct dirent *entry;
	char path[32];
	DIR *threads;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	threads = opendir(path);
	while (process && threads && (entry = readdir(threads))) {
		int id = atoi(entry->d_name);
		struct ts_traced *larger;

		if (!id || cannot_run(state_of(pid, id)))
			continue;
		larger = realloc(process,
				 sizeof(*process) + (process->count + 1) * sizeof(struct thread));
		if (!larger) {
			free(process);
			process = NULL;
			break;
		}
		process = larger;
		process->thread[process->count++] = (struct thread){ .id = id };
	}
	if (threads)
		closedir(threads);
	if (process) {
		process->pid = pid;
		process->memory = -1;
		CPU_ZERO(&process->here);
		CPU_SET(sched_getcpu(), &process->here);
	}
	return process;
}

/* Looks for the two bytes of a system call instruction, wherever they lie. */
static uint64_t find_gate(int memory, uint64_t start, uint64_t end)
{
	unsigned char code[4096 + 1];

	for (uint64_t at = start; at < end; at += sizeof(code) - 1) {
		size_t wanted = end - at < sizeof(code) ? end - at : sizeof(code);
		ssize_t got = pread(memory, code, wanted, (off_t)at);
		unsigned char *found = got > 1 ? memmem(code, got, "\x0f\x05", 2) : NULL;

		if (found)
			return at + (found - code);
	}
	return 0;
}

static bool in_system_call(const struct thread *thread, uint64_t *behind)
{
	struct user_regs_struct regs;

	if (ptrace(PTRACE_GETREGS, thread->id, 0, &regs) || (long)regs.orig_rax < 0)
		return false;
	*behind = regs.rip;
	return true;
}

/*
 * The instruction of a thread that is in a system call.  Else one in the vDSO, which is small, or
 * anywhere: every program that does anything has one.
 */
static bool open_gate(struct ts_traced *process)
{
	char path[32], line[4352];
	uint64_t behind;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/mem", process->pid);
	process->memory = open(path, O_RDWR | O_CLOEXEC);
	for (size_t i = 0; i < process->count && !process->gate; i++) {
		if (in_system_call(&process->thread[i], &behind))
			process->gate = find_gate(process->memory, behind - 2, behind);
	}
	if (process->gate)
		return true;
	snprintf(path, sizeof(path), "/proc/%d/maps", process->pid);
	maps = fopen(path, "re");
	for (int pass = 0; maps && pass < 2 && !process->gate; pass++) {
		rewind(maps);
		while (fgets(line, sizeof(line), maps)) {
			uint64_t start, end;
			char access[5];
			bool vdso = strstr(line, "[vdso]");

			if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, access) != 3)
				continue;
			if (!process->gate && access[2] == 'x' && (pass || vdso))
				process->gate = find_gate(process->memory, start, end);
		}
	}
	if (maps)
		fclose(maps);
	return process->gate;
}

struct ts_traced *ts_trace(int pid)
{
	struct ts_traced *process = with_threads_of(pid);
	size_t seized = 0, alive = 0;
	int err;

	if (!process) {
		errno = ENOMEM;
		return NULL;
	}
	while (seized < process->count && seize(pid, process->thread[seized].id))
		seized++;
	err = seized < process->count ? EPERM : process->count ? 0 : ESRCH;
	process->count = seized;
	for (size_t i = 0; i < process->count; i++)
		ptrace(PTRACE_INTERRUPT, process->thread[i].id, 0, 0);
	for (size_t i = 0; i < process->count; i++)
		alive += await_event(process, &process->thread[i]);
	if (!err && !alive)
		err = ESRCH;
	if (!err && !open_gate(process))
		err = EFAULT;
	if (!err)
		return process;
	ts_let_go(process, NULL);
	errno = err;
	return NULL;
}

int ts_traced_thread(const struct ts_traced *process)
{
	uint64_t behind;
	int other = 0;

	for (size_t i = 0; i < process->count; i++) {
		if (!process->thread[i].id)
			continue;
		/* then it is in no critical section of rseq(2) */
		if (in_system_call(&process->thread[i], &behind))
			return process->thread[i].id;
		other = process->thread[i].id;
	}
	return other;
}

/* Has it a signal to handle that an instruction of its own raised? */
static bool has_faulted(const struct thread *thread)
{
	static const uint64_t faults = 1ull << (SIGSEGV - 1) | 1ull << (SIGBUS - 1) |
				       1ull << (SIGILL - 1) | 1ull << (SIGFPE - 1);
	struct __ptrace_peeksiginfo_args which = { .nr = 1 };
	siginfo_t info;
	uint64_t mask;

	if (ptrace(PTRACE_GETSIGMASK, thread->id, sizeof(mask), &mask))
		return false;
	for (; ptrace(PTRACE_PEEKSIGINFO, thread->id, &which, &info) == 1; which.off++) {
		if (info.si_code > 0 && faults & ~mask & 1ull << (info.si_signo - 1))
			return true;
	}
	return false;
}

void ts_begin_handlers(struct ts_traced *process)
{
	for (size_t i = 0; i < process->count; i++) {
		struct thread *thread = &process->thread[i];
		int stop;

		if (!thread->id || !has_faulted(thread))
			continue;
		/* it comes before whatever else is pending */
		if (ptrace(PTRACE_CONT, thread->id, 0, 0) || (stop = await_stop(thread)) < 0)
			continue;
		if (stop >> 8)
			continue;
		/* the kernel makes the handler's frame, and stops in front of its first instruction
		 */
		ptrace(PTRACE_INTERRUPT, thread->id, 0, 0);
		ptrace(PTRACE_CONT, thread->id, 0, stop);
		await_event(process, thread);
	}
}

static void remember_rseq(struct ts_traced *process, struct thread *thread)
{
	struct __ptrace_rseq_configuration rseq;

	if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, thread->id, sizeof(rseq), &rseq) < 0 ||
	    !rseq.rseq_abi_pointer)
		return;
	thread->rseq_cs_at = rseq.rseq_abi_pointer + RSEQ_CS;
	if (pread(process->memory, &thread->rseq_cs, sizeof(thread->rseq_cs),
		  (off_t)thread->rseq_cs_at) != sizeof(thread->rseq_cs))
		thread->rseq_cs = 0;
}

/* Where one of these is not to be had, only the figures suffer. */
static void hurry(const struct ts_traced *process, struct thread *thread)
{
	thread->near = !sched_getaffinity(thread->id, sizeof(thread->cpus), &thread->cpus) &&
		       !sched_setaffinity(thread->id, sizeof(process->here), &process->here);
	struct scheduling *before = &thread->scheduling;
	struct scheduling as_ours = { .size = sizeof(as_ours),
				      .policy = SCHED_FIFO,
				      .priority = 1 };

	if (syscall(SYS_sched_getattr, thread->id, before, sizeof(*before), 0) ||
	    (before->policy != SCHED_OTHER && before->policy != SCHED_BATCH &&
	     before->policy != SCHED_IDLE))
		return;
	as_ours.flags = before->flags;
	thread->hurried = !syscall(SYS_sched_setattr, thread->id, &as_ours, 0);
}

static bool begin_using(struct ts_traced *process, struct thread *thread)
{
	static const uint64_t all = ~0ull;

	if (thread->used)
		return true;
	if (ptrace(PTRACE_GETREGS, thread->id, 0, &thread->regs) ||
	    ptrace(PTRACE_GETSIGMASK, thread->id, sizeof(thread->mask), &thread->mask) ||
	    ptrace(PTRACE_SETSIGMASK, thread->id, sizeof(all), &all))
		return false;
	thread->used = true;
	remember_rseq(process, thread);
	hurry(process, thread);
	return true;
}

/* Goes on to the next stop at the beginning or the end of a system call. */
static bool step(struct ts_traced *process, struct thread *thread)
{
	int stop;

	do {
		if (ptrace(PTRACE_SYSCALL, thread->id, 0, 0) || (stop = await_stop(thread)) < 0)
			return false;
		if (stop == SIGSTOP)
			process->stopped = true; /* once it is let go */
	} while (stop != SYSCALL_STOP);
	return true;
}

static long call(struct ts_traced *process, struct thread *thread, long number, const int64_t *arg)
{
	struct user_regs_struct regs = thread->regs;

	regs.rip = process->gate;
	regs.orig_rax = ~0ull;
	regs.rax = (unsigned long)number;
	regs.rdi = (unsigned long)arg[0];
	regs.rsi = (unsigned long)arg[1];
	regs.rdx = (unsigned long)arg[2];
	regs.r10 = (unsigned long)arg[3];
	regs.r8 = (unsigned long)arg[4];
	regs.r9 = (unsigned long)arg[5];
	if (ptrace(PTRACE_SETREGS, thread->id, 0, &regs) || !step(process, thread) ||
	    !step(process, thread) || ptrace(PTRACE_GETREGS, thread->id, 0, &regs))
		return -ECHILD;
	return (long)regs.rax;
}

long ts_inject(struct ts_traced *process, int id, long number, const int64_t *arg)
{
	struct thread *thread = process->thread, *end = thread + process->count;
	cpu_set_t anywhere;
	bool pinned;
	long ret;

	while (thread < end && thread->id != id)
		thread++;
	if (thread == end || !begin_using(process, thread))
		return -ESRCH;
	/* woken by a thread that is as urgent as we are, we would be put on another CPU */
	pinned = thread->near && !sched_getaffinity(0, sizeof(anywhere), &anywhere) &&
		 !sched_setaffinity(0, sizeof(process->here), &process->here);
	ret = call(process, thread, number, arg);
	if (pinned)
		sched_setaffinity(0, sizeof(anywhere), &anywhere);
	return ret;
}

uint64_t ts_scratch(struct ts_traced *process, int thread)
{
	const int64_t arg[6] = { 0, TS_SCRATCH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				 -1 };
	long at;

	if (!process->scratch) {
		at = ts_inject(process, thread, SYS_mmap, arg);
		if (at < 0 && at > -4096)
			return 0;
		process->scratch = (uint64_t)at;
		process->worker = thread;
	}
	return process->scratch;
}

void ts_return_scratch(struct ts_traced *process)
{
	const int64_t arg[6] = { (int64_t)process->scratch, TS_SCRATCH };

	ts_inject(process, process->worker, SYS_munmap, arg);
	process->scratch = 0;
}

bool ts_write_scratch(struct ts_traced *process, unsigned int offset, const void *from,
		      unsigned int size)
{
	return pwrite(process->memory, from, size, (off_t)(process->scratch + offset)) == size;
}

bool ts_read_scratch(struct ts_traced *process, unsigned int offset, void *to, unsigned int size)
{
	return pread(process->memory, to, size, (off_t)(process->scratch + offset)) == size;
}

static void put_back(struct ts_traced *process, struct thread *thread)
{
	/* a stop inside get_signal(), see above */
	if (ptrace(PTRACE_INTERRUPT, thread->id, 0, 0) || ptrace(PTRACE_CONT, thread->id, 0, 0) ||
	    !await_event(process, thread))
		return;
	if (thread->rseq_cs)
		pwrite(process->memory, &thread->rseq_cs, sizeof(thread->rseq_cs),
		       (off_t)thread->rseq_cs_at);
	ptrace(PTRACE_SETREGS, thread->id, 0, &thread->regs);
	ptrace(PTRACE_SETSIGMASK, thread->id, sizeof(thread->mask), &thread->mask);
	if (thread->near)
		sched_setaffinity(thread->id, sizeof(thread->cpus), &thread->cpus);
	if (thread->hurried)
		syscall(SYS_sched_setattr, thread->id, &thread->scheduling, 0);
}

void ts_let_go(struct ts_traced *process, const struct ts_held *held)
{
	for (size_t i = 0; i < process->count; i++) {
		if (process->thread[i].used)
			put_back(process, &process->thread[i]);
	}
	if (process->stopped)
		kill(process->pid, SIGSTOP);
	for (size_t i = 0; i < process->count; i++) {
		if (process->thread[i].id && !ts_is_held(held, process->thread[i].id))
			ptrace(PTRACE_DETACH, process->thread[i].id, 0, 0);
	}
	if (process->memory >= 0)
		close(process->memory);
	free(process);
}
