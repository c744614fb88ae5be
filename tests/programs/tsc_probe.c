// SPDX-License-Identifier: MIT
/*
 * tsc_probe.c - what an instruction that reads the TSC leaves as it was, and what a thread reads
 * that is stopped at any instruction of what stands in for it.
 *
 *     tsc_probe storm MILLIONS    all registers, flags and the red zone, while signals arrive
 *     tsc_probe steps             a child is stepped through; between each two instructions, once,
 *                                 the page's epoch changes
 *
 * Prints one JSON object.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#include "arith.h"
#include "timeshim.h"

enum { RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8, R9, R10, R11, R12, R13, R14, R15, REGISTERS };

struct state {
	uint64_t reg[REGISTERS];
	uint64_t flags;
	uint64_t red_zone[16];
};

struct state before, after;
uint64_t saved_rsp;

/*
 * Loads all of `before`, runs a site, stores all into `after`: with instructions that change no
 * flag, relative to rip, so that nothing is left out.  The site of the first kind moves the store
 * behind it along; the others have a destination there.
 */
#define LOAD(i, reg) "mov before+8*" #i "(%rip), %" #reg "\n"
#define STORE(i, reg) "mov %" #reg ", after+8*" #i "(%rip)\n"
#define EACH(of)                                                                                   \
	of(1, rbx) of(2, rcx) of(3, rdx) of(4, rsi) of(5, rdi) of(6, rbp) of(7, r8) of(8, r9)      \
		of(9, r10) of(10, r11) of(11, r12) of(12, r13) of(13, r14) of(14, r15)
#define PROBE(name, site)                                                                          \
	".globl " #name "\n.type " #name ", @function\n" #name ":\n.cfi_startproc\n"               \
	"push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"                       \
	"mov %rsp, saved_rsp(%rip)\npushq before+8*15(%rip)\npopfq\n"                              \
	".set i, 0\n.rept 16\nmov before+8*16+8*i(%rip), %rax\nmov %rax, -8-8*i(%rsp)\n"           \
	".set i, i+1\n.endr\n" EACH(LOAD) LOAD(0, rax) site STORE(0, rax) EACH(                    \
		STORE) ".set i, 0\n.rept 16\nmov -8-8*i(%rsp), %rax\nmov %rax, "                   \
		       "after+8*16+8*i(%rip)\n"                                                    \
		       ".set i, i+1\n.endr\nlea -128(%rsp), %rsp\npushfq\npopq after+8*15(%rip)\n" \
		       "mov saved_rsp(%rip), %rsp\npop %r15\npop %r14\npop %r13\npop %r12\npop "   \
		       "%rbp\npop %rbx\n"                                                          \
		       "cld\nret\n.cfi_endproc\n.size " #name ", . - " #name "\n"

__asm__(".text\n.p2align 6\n" PROBE(probe_moved,
				    "rdtsc\n") ".p2align 6\n" PROBE(probe_aux,
								    "rdtscp\n") ".p2align 6\n"
	/* never taken, but who would know: a way in behind it, and one in front */
	PROBE(probe_punned, "jrcxz 1f\njmp 1f\njmp 2f\n1: rdtsc\n2: ") ".p2align 6\n");

void probe_moved(void), probe_aux(void), probe_punned(void);

static const struct {
	void (*run)(void);
	bool aux;
} probe[] = { { probe_moved, false }, { probe_aux, true }, { probe_punned, false } };

/* Carry, parity, auxiliary carry, zero, sign, direction, overflow; and 1, which is always set. */
#define FLAGS 0xcd5ull

static volatile uint64_t signals;

static void on_signal(int number)
{
	volatile uint8_t scribble[512];

	(void)number;
	memset((void *)scribble, 0xee, sizeof(scribble));
	signals += __rdtsc() ? 1 : 0;
}

static void *storm(void *target)
{
	struct timespec pause = { .tv_nsec = 20000 };

	for (;;) {
		pthread_kill((pthread_t)target, SIGUSR1);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

static uint64_t next(uint64_t *random)
{
	*random ^= *random << 13;
	*random ^= *random >> 7;
	return *random ^= *random << 17;
}

static int registers(uint64_t times)
{
	uint64_t wrong = 0, checks = 0, random = 88172645463325252ull;
	pthread_t thread;

	signal(SIGUSR1, on_signal);
	pthread_create(&thread, NULL, storm, (void *)pthread_self());
	for (; checks < times; checks++) {
		size_t which = checks % (sizeof(probe) / sizeof(probe[0]));
		uint64_t *words = (uint64_t *)&before;

		for (size_t i = 0; i < sizeof(before) / 8; i++)
			words[i] = next(&random);
		before.flags = (before.flags & FLAGS) | 0x202;
		probe[which].run();
		/* what it is there to change; the halves it returns have 32 bits */
		if (after.reg[RAX] >> 32 || after.reg[RDX] >> 32 ||
		    (probe[which].aux && after.reg[RCX] >> 32))
			wrong++;
		after.reg[RAX] = before.reg[RAX];
		after.reg[RDX] = before.reg[RDX];
		if (probe[which].aux)
			after.reg[RCX] = before.reg[RCX];
		wrong += !!memcmp(&before, &after, sizeof(before));
	}
	printf("{\"checks\": %lu, \"signals\": %lu, \"wrong\": %lu}\n", checks, signals, wrong);
	return 0;
}

#define BOUNDARIES 200 /* more than there are between a raise() and the end of a probe */

/* Stepping ------------------------------------------------------------------------------------- */

static inline uint64_t hardware(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\t.byte 0x48, 0x0f, 0x31\n\tlfence" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static struct ts_clock_area *page;

static void publish(uint64_t ratio, uint64_t offset)
{
	uint64_t next_one = page->generation + 1;

	page->epoch[next_one & 1].tsc_ratio = ratio;
	page->epoch[next_one & 1].tsc_offset = offset;
	page->generation = next_one;
}

static bool within(uint64_t ticks, uint64_t first, uint64_t last, const struct ts_epoch *epoch)
{
	return ts_virtual_tsc(first, epoch->tsc_ratio, epoch->tsc_offset) <= ticks &&
	       ticks <= ts_virtual_tsc(last, epoch->tsc_ratio, epoch->tsc_offset);
}

/* Lets the child do its probe, changing the epoch after so many steps.  Returns the steps it took.
 */
static long step_through(pid_t child, long change_after, bool scaled, bool *right)
{
	struct ts_epoch old = page->epoch[page->generation & 1], new = old;
	uint64_t start = hardware(), changed = 0, end, ticks;
	struct user_regs_struct regs;
	long steps = 0;
	int status;

	new.tsc_offset += 1ull << 42;
	new.tsc_ratio = scaled ? 5ull << 58 : 1ull << 60;
	for (;; steps++) {
		if (steps == change_after) {
			changed = hardware();
			publish(new.tsc_ratio, new.tsc_offset);
		}
		if (ptrace(PTRACE_SINGLESTEP, child, 0, 0) || waitpid(child, &status, 0) != child ||
		    !WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
			exit(1);
		/* the child says that it is through by what it stores last */
		if (ptrace(PTRACE_PEEKDATA, child, &after.flags, 0))
			break;
	}
	end = hardware();
	ticks = (uint64_t)ptrace(PTRACE_PEEKDATA, child, &after.reg[RDX], 0) << 32 |
		(uint64_t)ptrace(PTRACE_PEEKDATA, child, &after.reg[RAX], 0);
	*right = changed ? within(ticks, start, changed, &old) || within(ticks, changed, end, &new)
			 : within(ticks, start, end, &old);
	/* the probe's own popf makes the kernel take the trap flag for the child's
	 * (x86/kernel/step.c) */
	if (ptrace(PTRACE_GETREGS, child, 0, &regs))
		exit(1);
	regs.eflags &= ~0x100ull;
	if (ptrace(PTRACE_SETREGS, child, 0, &regs) || ptrace(PTRACE_CONT, child, 0, 0) ||
	    waitpid(child, &status, 0) != child)
		exit(1);
	return steps;
}

static int steps(void)
{
	long boundaries = 0, wrong = 0;
	pid_t child;
	int status;

	page = mmap(NULL, TS_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		    open("/run/timeshim-task/page", O_RDWR), 0);
	if (page == MAP_FAILED)
		return 1;
	child = fork();
	if (!child) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		for (size_t i = 0;; i++) {
			memset(&before, 0, sizeof(before));
			before.flags = 0x202;
			memset(&after, 0, sizeof(after));
			raise(SIGSTOP);
			probe[i / BOUNDARIES % 3].run();
		}
	}
	waitpid(child, &status, 0);
	for (size_t kind = 0; kind < 3; kind++) {
		for (long i = 0; i < BOUNDARIES; i++) {
			long length;
			bool right;

			/* from behind raise() to the end: some of it is libc's, but what of it */
			length = step_through(child, i, i % 2, &right);
			boundaries += i < length;
			wrong += !right;
		}
	}
	kill(child, SIGKILL);
	printf("{\"boundaries\": %ld, \"wrong\": %ld}\n", boundaries, wrong);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "storm"))
		return registers((uint64_t)atol(argv[2]) * 1000000);
	return steps();
}
