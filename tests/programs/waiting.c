// SPDX-License-Identifier: MIT
/*
 * waiting.c - calls the functions that wait for children in many ways, and prints what they say.
 *
 * With the shim it must print what it prints without.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t child;

static pid_t ends_with(int status)
{
	child = fork();
	if (!child)
		_exit(status);
	return child;
}

static pid_t stays(void)
{
	child = fork();
	while (!child)
		pause();
	return child;
}

/* The call's result, with the child's id spelt the same in each run. */
static void say(const char *what, long ret, int error, int status)
{
	if (ret == child)
		printf("%s: the child, %#x\n", what, status);
	else
		printf("%s: %ld %s, %#x\n", what, ret, ret < 0 ? strerrorname_np(error) : "-",
		       status);
}

#define SAY(call)                                                                                  \
	do {                                                                                       \
		int status = 0x7777;                                                               \
		struct rusage usage = { .ru_maxrss = -1 };                                         \
		siginfo_t info;                                                                    \
		long ret;                                                                          \
                                                                                                   \
		(void)usage, memset(&info, 0x55, sizeof(info));                                    \
		ret = (call);                                                                      \
		say(#call, ret, errno, status);                                                    \
		if (info.si_signo != 0x55555555)                                                   \
			printf("  info: %d %d %d %#x\n", info.si_signo, info.si_pid == child,      \
			       info.si_code, info.si_status);                                      \
		if (usage.ru_maxrss != -1)                                                         \
			printf("  usage: %d\n", usage.ru_maxrss > 100 && usage.ru_nswap == 0);     \
	} while (0)

static void nothing(int signal)
{
	(void)signal;
}

static void *wait_for_ever(void *unused)
{
	wait(NULL);
	return unused;
}

static void cancelled(void)
{
	pthread_t thread;
	void *result;

	stays();
	pthread_create(&thread, NULL, wait_for_ever, NULL);
	usleep(20000);
	pthread_cancel(thread);
	pthread_join(thread, &result);
	printf("cancelled: %d\n", result == PTHREAD_CANCELED);
	kill(child, SIGKILL);
	SAY(waitpid(child, &status, 0));
}

int main(void)
{
	void *bad = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int pidfd;

	SAY(wait(&status));
	SAY(waitpid(-1, &status, WNOHANG));
	SAY(wait3(&status, 0, &usage));
	SAY(waitid(P_ALL, 0, &info, WEXITED));
	SAY(waitpid(-1, &status, 0x40));
	SAY(waitid(P_ALL, 0, &info, 0));
	SAY(waitid(P_ALL, 0, &info, WEXITED | 0x40));
	SAY(waitid(77, 0, &info, WEXITED));
	SAY(waitpid(1 << 30, &status, 0));

	ends_with(3);
	SAY(wait(&status));
	ends_with(4);
	SAY(wait(NULL));
	ends_with(5);
	SAY(waitpid(child, &status, 0));
	ends_with(6);
	SAY(waitpid(0, &status, 0));
	ends_with(7);
	SAY(waitpid(-getpgrp(), &status, 0));
	ends_with(8);
	SAY(wait4(child, &status, 0, &usage));
	ends_with(9);
	SAY(waitid(P_PID, child, &info, WEXITED | WNOWAIT));
	SAY(waitid(P_ALL, 0, &info, WEXITED | WSTOPPED));
	ends_with(10);
	SAY(waitid(P_PGID, 0, &info, WEXITED));
	ends_with(11);
	SAY(waitid(P_PID, child, NULL, WEXITED));
	ends_with(12);
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	SAY(waitid(P_PIDFD, pidfd, &info, WEXITED));
	SAY(waitid(P_PIDFD, pidfd, &info, WEXITED));
	ends_with(13);
	SAY(waitpid(child, bad, 0));
	SAY(waitpid(child, &status, 0));
	ends_with(14);
	SAY(waitid(P_PID, child, bad, WEXITED));

	stays();
	SAY(waitpid(child, &status, WNOHANG));
	SAY(wait4(child, NULL, WNOHANG, &usage));
	SAY(waitid(P_PID, child, &info, WEXITED | WNOHANG));
	kill(child, SIGSTOP);
	SAY(waitpid(child, &status, WUNTRACED));
	kill(child, SIGCONT);
	SAY(waitpid(child, &status, WCONTINUED));
	kill(child, SIGSTOP);
	SAY(waitid(P_PID, child, &info, WEXITED | WSTOPPED));
	kill(child, SIGCONT);
	SAY(waitid(P_PID, child, &info, WCONTINUED));
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = nothing }, NULL);
	ualarm(20000, 0);
	SAY(wait(&status));
	ualarm(20000, 0);
	SAY(waitid(P_ALL, 0, &info, WEXITED));
	kill(child, SIGKILL);
	SAY(wait3(&status, 0, NULL));
	cancelled();
	return 0;
}
