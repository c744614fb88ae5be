// SPDX-License-Identifier: MIT
/*
 * trapped.c - reads the TSC where nobody can rewrite it, and lives with SIGSEGV as programs do.
 *
 *     trapped reads          each way to read it once: is it right?
 *     trapped spin THREADS   reads in a loop until SIGTERM; says what was wrong
 *     trapped handlers       SIGSEGVs of its own, in each way to handle them
 *     trapped end HOW        ends by SIGSEGV in one of several ways
 *     trapped lifted         until SIGTERM without the trap in one thread, as while it starts a
 *                            program; then says who has it
 *     trapped start HOW      starts `trapped reads` in one of several ways
 *
 * One JSON object a line.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "timeshim.h"

typedef uint64_t read_fn(void);

/* A prefix keeps it from being virtual: see tsc.c. */
static inline uint64_t hardware(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\t.byte 0x48, 0x0f, 0x31\n\tlfence" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static uint64_t shift(void)
{
	const struct timeshim_clocks_1 *clocks = timeshim_clocks();

	return clocks ? clocks->epoch[clocks->generation & 1].tsc_offset : 0;
}

static void say(const char *what, bool right)
{
	printf("{\"what\": \"%s\", \"right\": %s}\n", what, right ? "true" : "false");
	fflush(stdout);
}

static bool is_right(read_fn *read)
{
	uint64_t before = hardware() + shift();
	uint64_t ticks = read();

	return before <= ticks && ticks <= hardware() + shift();
}

/* Code that is made while the program runs. */
static read_fn *generated, *generated_with_aux;

static void generate(void)
{
	static const uint8_t rdtsc[] = {
		0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0xc3
	};
	static const uint8_t rdtscp[] = { 0x0f, 0x01, 0xf9, 0x48, 0xc1, 0xe2,
					  0x20, 0x48, 0x09, 0xd0, 0xc3 };
	uint8_t *code =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memcpy(code, rdtsc, sizeof(rdtsc));
	memcpy(code + 64, rdtscp, sizeof(rdtscp));
	mprotect(code, 4096, PROT_READ | PROT_EXEC);
	generated = (read_fn *)code;
	generated_with_aux = (read_fn *)(code + 64);
}

/* No symbol, and the unwinder's table does not know it. */
read_fn *unbounded(void);
__asm__(".text\n.p2align 4\n.byte 0xcc\n.p2align 4\n"
	".Lhidden: rdtsc\nshl $32, %rdx\nor %rdx, %rax\nret\n.p2align 4\n.byte 0xcc\n.p2align 4\n"
	".globl unbounded\n.type unbounded, @function\nunbounded:\n.cfi_startproc\n"
	"lea .Lhidden(%rip), %rax\nret\n.cfi_endproc\n.size unbounded, . - unbounded\n");

static __attribute__((noinline)) uint64_t compiled(void)
{
	return __builtin_ia32_rdtsc();
}

static uint64_t header(void)
{
	return timeshim_rdtsc();
}

static volatile bool right_in_handler;

static void on_alarm(int number)
{
	(void)number;
	right_in_handler = is_right(generated);
}

static void *in_thread(void *right)
{
	*(bool *)right = is_right(generated);
	return NULL;
}

static bool registers_survive(void)
{
	bool same = true;

	for (int i = 0; i < 1000; i++) {
		uint64_t flags = i & 1 ? 0x8d5 : 0x0, after, rbx = 1, rsi = 2, r11 = 3;
		uint32_t low, high, aux;

		/* CF PF AF ZF SF OF, all or none; 128 bytes below belong to the red zone */
		__asm__ volatile("lea -256(%%rsp), %%rsp\n\tpush %[flags]\n\tpopf\n\trdtscp\n\t"
				 "pushf\n\tpop %[after]\n\tlea 256(%%rsp), %%rsp"
				 : "=a"(low), "=d"(high), "=c"(aux), [after] "=r"(after), "+b"(rbx),
				   "+S"(rsi), "+r"(r11)
				 : [flags] "r"(flags)
				 : "cc", "memory");
		same &= (after & 0x8d5) == flags && rbx == 1 && rsi == 2 && r11 == 3;
	}
	return same;
}

static void reads(void)
{
	struct sigaction alarm = { .sa_handler = on_alarm };
	sigset_t all, before;
	pthread_t thread;
	bool right = false;
	struct timeval day;
	struct timespec now;
	int status;
	pid_t child;

	say("generated", is_right(generated));
	say("generated, aux", is_right(generated_with_aux));
	say("unbounded", is_right(unbounded()));
	say("compiled", is_right(compiled));
	say("timeshim.h", is_right(header));
	say("registers", registers_survive());

	pthread_create(&thread, NULL, in_thread, &right);
	pthread_join(thread, NULL);
	say("thread", right);
	child = fork();
	if (!child)
		_exit(!is_right(generated));
	waitpid(child, &status, 0);
	say("fork", !status);

	/* where signals are blocked */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	say("blocked", is_right(generated));
	sigprocmask(SIG_SETMASK, &before, NULL);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	say("blocked by pthread", is_right(generated));
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, &all, NULL, 8);
	say("blocked by syscall", is_right(generated));
	sigprocmask(SIG_SETMASK, &before, NULL);
	sigfillset(&alarm.sa_mask);
	sigaction(SIGALRM, &alarm, NULL);
	raise(SIGALRM);
	say("handler", right_in_handler);
	right_in_handler = false;
	setitimer(ITIMER_REAL, &(struct itimerval){ .it_value.tv_usec = 1000 }, NULL);
	sigdelset(&all, SIGALRM);
	sigsuspend(&all);
	say("handler in sigsuspend", right_in_handler);

	/* libc's own readings of the vDSO, which the shim does not see */
	gettimeofday(&day, NULL);
	clock_gettime(CLOCK_REALTIME, &now);
	say("gettimeofday", llabs(now.tv_sec - day.tv_sec) < 5);
}

static volatile sig_atomic_t stop;

static void on_sigterm(int number)
{
	(void)number;
	stop = 1;
}

struct spinner {
	pthread_t thread;
	uint64_t reads, backward, most, unlike;
};

static void *spin(void *argument)
{
	struct spinner *spinner = argument;
	uint64_t last = generated();

	while (!stop) {
		uint64_t header = timeshim_rdtsc();
		uint64_t ticks = ++spinner->reads & 1 ? generated() : generated_with_aux();
		int64_t step = (int64_t)(ticks - last);

		if (step < 0)
			spinner->backward++;
		else if ((uint64_t)step > spinner->most)
			spinner->most = (uint64_t)step;
		/* the hardware's counter would be days away */
		spinner->unlike += header > ticks || ticks - header > 10 * timeshim_tsc_hz();
		last = ticks;
	}
	return NULL;
}

static void spin_all(int threads)
{
	struct spinner spinner[16] = { 0 };

	signal(SIGTERM, on_sigterm);
	for (int i = 0; i < threads; i++)
		pthread_create(&spinner[i].thread, NULL, spin, &spinner[i]);
	for (int i = 0; i < threads; i++) {
		pthread_join(spinner[i].thread, NULL);
		printf("{\"reads\": %lu, \"backward\": %lu, \"most\": %lu, \"unlike\": %lu, "
		       "\"hz\": %lu}\n",
		       spinner[i].reads, spinner[i].backward, spinner[i].most, spinner[i].unlike,
		       timeshim_tsc_hz());
	}
}

static void *tell_at_the_end(void *setting)
{
	while (!stop)
		usleep(1000);
	prctl(PR_GET_TSC, setting);
	return NULL;
}

static void lifted(void)
{
	int set = 0, off = 0;
	pthread_t thread;

	signal(SIGTERM, on_sigterm);
	pthread_create(&thread, NULL, tell_at_the_end, &set);
	prctl(PR_SET_TSC, PR_TSC_ENABLE);
	tell_at_the_end(&off);
	pthread_join(thread, NULL);
	say("set", set == PR_TSC_SIGSEGV);
	say("lifted", off == PR_TSC_ENABLE);
}

/* SIGSEGVs of its own -------------------------------------------------------------------------- */

static int *volatile nowhere = (int *)16;
static volatile int handled;
static void *volatile fault_at;
static sigjmp_buf back;
static volatile bool blocked_usr1, on_alternate, right_inside;
static char alternate[65536];

static void step_over(int number, siginfo_t *info, void *context)
{
	ucontext_t *at = context;
	sigset_t now;

	handled += number == SIGSEGV;
	fault_at = info->si_addr;
	pthread_sigmask(SIG_BLOCK, NULL, &now);
	blocked_usr1 = sigismember(&now, SIGUSR1);
	on_alternate =
		(char *)&now - alternate < (long)sizeof(alternate) && (char *)&now > alternate;
	right_inside = is_right(generated);
	at->uc_mcontext.gregs[REG_RIP] += 2; /* mov %eax, (%rax) */
}

static void touch(void)
{
	__asm__ volatile("mov %%eax, (%%rax)" : : "a"(nowhere) : "memory");
}

static void leap(int number)
{
	(void)number;
	handled++;
	siglongjmp(back, 1);
}

static void count(int number)
{
	(void)number;
	handled++;
}

static void handlers(void)
{
	struct sigaction wanted = { .sa_sigaction = step_over,
				    .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t stack = { .ss_sp = alternate, .ss_size = sizeof(alternate) };
	struct sigaction old;

	sigaltstack(&stack, NULL);
	sigaction(SIGSEGV, NULL, &old);
	say("none at first", old.sa_handler == SIG_DFL);
	sigaddset(&wanted.sa_mask, SIGUSR1);
	sigaction(SIGSEGV, &wanted, &old);
	say("none before", old.sa_handler == SIG_DFL);
	touch();
	say("siginfo", handled == 1 && fault_at == nowhere);
	say("mask", blocked_usr1);
	say("alternate stack", on_alternate);
	say("reads inside", right_inside);
	say("reads after", is_right(generated));
	say("old of signal()", (void *)signal(SIGSEGV, leap) == (void *)step_over);
	sigaction(SIGSEGV, NULL, &old);
	say("flags of signal()", old.sa_handler == leap && old.sa_flags & SA_RESTART);
	for (int i = 0; i < 3; i++)
		if (!sigsetjmp(back, 1))
			touch();
	say("leaps", handled == 4);
	say("reads after leaps", is_right(generated));
	signal(SIGSEGV, count);
	raise(SIGSEGV);
	kill(getpid(), SIGSEGV);
	say("sent", handled == 6);
	signal(SIGSEGV, SIG_IGN);
	raise(SIGSEGV);
	say("ignored when sent", handled == 6 && is_right(generated));
	wanted.sa_flags |= (int)SA_RESETHAND;
	sigaction(SIGSEGV, &wanted, &old);
	say("old is SIG_IGN", old.sa_handler == SIG_IGN);
	touch();
	sigaction(SIGSEGV, NULL, &old);
	say("reset", handled == 7 && old.sa_handler == SIG_DFL);
}

static int end(const char *how)
{
	struct sigaction once = { .sa_sigaction = step_over,
				  .sa_flags = (int)(SA_SIGINFO | SA_RESETHAND) };

	generated();
	if (!strcmp(how, "raised"))
		raise(SIGSEGV);
	if (!strcmp(how, "ignored"))
		signal(SIGSEGV, SIG_IGN);
	if (!strcmp(how, "once")) {
		sigaction(SIGSEGV, &once, NULL);
		touch();
	}
	if (!strcmp(how, "privileged"))
		__asm__ volatile("hlt");
	touch();
	return 0;
}

static char self[4096];
extern char **environ;

static int start(const char *how)
{
	char *argv[] = { self, "reads", NULL }, *none[] = { NULL }, *missing[] = { "", NULL };
	char command[4200];
	int status = 0;
	pid_t child = 0;

	snprintf(command, sizeof(command), "%s reads", self);
	if (!strcmp(how, "execve"))
		execve(self, argv, none);
	if (!strcmp(how, "execl"))
		execl(self, self, "reads", NULL);
	if (!strcmp(how, "execvp"))
		execvp(self, argv);
	if (!strcmp(how, "syscall"))
		syscall(SYS_execve, self, argv, environ);
	if (!strcmp(how, "vfork")) {
		child = vfork();
		if (!child) {
			execve("/does/not/exist", missing, none);
			execve(self, argv, none);
			_exit(1);
		}
	}
	if (!strcmp(how, "posix_spawn"))
		posix_spawn(&child, self, NULL, NULL, argv, none);
	if (!strcmp(how, "posix_spawnp"))
		posix_spawnp(&child, self, NULL, NULL, argv, environ);
	if (child)
		waitpid(child, &status, 0);
	if (!strcmp(how, "system"))
		status = system(command);
	if (!strcmp(how, "popen")) {
		FILE *pipe = popen(command, "r");
		char line[256];

		while (fgets(line, sizeof(line), pipe))
			fputs(line, stdout);
		status = pclose(pipe);
	}
	if (!strcmp(how, "failing"))
		say("fails", execve("/does/not/exist", argv, none) == -1 && errno == ENOENT);
	say("ended well", status == 0);
	say("afterwards", is_right(generated));
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "reads";

	readlink("/proc/self/exe", self, sizeof(self) - 1);
	generate();
	if (!strcmp(what, "reads"))
		reads();
	else if (!strcmp(what, "handlers"))
		handlers();
	else if (!strcmp(what, "spin"))
		spin_all(atoi(argv[2]));
	else if (!strcmp(what, "lifted"))
		lifted();
	else if (!strcmp(what, "end"))
		return end(argv[2]);
	else if (!strcmp(what, "start"))
		return start(argv[2]);
	return 0;
}
