// SPDX-License-Identifier: MIT
/*
 * injected.c - processes with a timer that are not easily made to set it again.
 *
 *     injected filtered MS     a seccomp filter kills whoever makes the system calls that takes
 *     injected stopped MS      it stops itself
 *     injected spinning MS     it computes in registers and makes no system call
 *     injected waiting MS      it is in ppoll(), for longer than that
 *     injected many MS         it has a thousand timers
 *
 * Prints a JSON object: how late the timer, the last one of many, rang by its clock, and whether
 * all else was as it should be.
 */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NSEC 1000000000ll
#define MANY 1000

static int64_t span, due;
static sigset_t only;
static char buffer[4096];

static int64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NSEC + ts.tv_nsec;
}

static bool set_timer(void)
{
	struct itimerspec setting = { .it_value = { due / NSEC, due % NSEC } };
	struct sigevent event = { .sigev_signo = SIGUSR1 };
	timer_t id;

	return !timer_create(CLOCK_MONOTONIC, &event, &id) &&
	       !timer_settime(id, TIMER_ABSTIME, &setting, NULL);
}

static bool take_signal(void)
{
	int signal;

	return !sigwait(&only, &signal) && signal == SIGUSR1;
}

static bool filtered(void)
{
#define FORBID(call)                                                                               \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),                                           \
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		FORBID(SYS_timer_settime),
		FORBID(SYS_timer_gettime),
		FORBID(SYS_mmap),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), filter };

	setvbuf(stdout, buffer, _IOFBF, sizeof(buffer)); /* or stdio would ask for memory */
	return set_timer() && !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) && take_signal();
}

static bool stopped(void)
{
	return set_timer() && !kill(getpid(), SIGSTOP) && take_signal();
}

static volatile sig_atomic_t rang;

static void handler(int signal)
{
	(void)signal;
	rang = 1;
}

static void step(uint64_t *integer, double *real)
{
	for (int i = 0; i < 1000000; i++) {
		*integer = *integer * 6364136223846793005u + 1442695040888963407u;
		*real = *real > 2 ? *real - 1 : *real * 1.0000001;
	}
}

static bool spinning(void)
{
	uint64_t integer = 1, integer_again = 1;
	double real = 1, real_again = 1;
	int64_t rang_at;
	long rounds = 0;

	signal(SIGUSR1, handler);
	sigprocmask(SIG_UNBLOCK, &only, NULL);
	if (!set_timer())
		return false;
	for (; !rang; rounds++)
		step(&integer, &real);
	rang_at = now();
	while (rounds--)
		step(&integer_again, &real_again);
	due += now() - rang_at; /* main() looks at the clock once more */
	return integer == integer_again && real == real_again;
}

static bool waiting(void)
{
	const struct timespec longer = { (span + NSEC) / NSEC, (span + NSEC) % NSEC };
	int64_t begin = now(), took;
	sigset_t after;

	if (!set_timer() || ppoll(NULL, 0, &longer, NULL))
		return false;
	took = now() - begin;
	sigprocmask(SIG_BLOCK, NULL, &after);
	due += NSEC;
	return took >= span + NSEC && sched_getscheduler(0) == SCHED_OTHER &&
	       !memcmp(&after, &only, _NSIG / 8) && take_signal();
}

static bool many(void)
{
	for (int i = 0; i < MANY; i++)
		if (!set_timer())
			return false;
	for (int i = 0; i < MANY; i++)
		if (!take_signal() || now() < due)
			return false;
	return true;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		bool (*run)(void);
	} kind[] = { { "filtered", filtered },
		     { "stopped", stopped },
		     { "spinning", spinning },
		     { "waiting", waiting },
		     { "many", many } };
	bool right = false;
	int64_t late;

	if (argc != 3)
		return 2;
	sigemptyset(&only);
	sigaddset(&only, SIGUSR1);
	sigprocmask(SIG_SETMASK, &only, NULL);
	span = atoll(argv[2]) * 1000000;
	due = now() + span;
	for (size_t i = 0; i < sizeof(kind) / sizeof(kind[0]); i++)
		if (!strcmp(kind[i].name, argv[1]))
			right = kind[i].run();
	late = now() - due;
	printf("{\"late_ns\": %ld, \"right\": %s}\n", (long)late, right ? "true" : "false");
	return 0;
}
