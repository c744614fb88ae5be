// SPDX-License-Identifier: MIT
/*
 * rebirth.c - has children that use CPU time, and after their end others with the very same ids.
 *
 * At the first SIGTERM its children end; for each another is started with its id.  Each of those
 * prints a JSON object at once, and again at the second SIGTERM: how it was started, and what it
 * has used, in microseconds, by its own clock, by getrusage(), and by its parent's look at its
 * clock.
 */
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BURN_MS = 150, CHILDREN = 2 };

static volatile sig_atomic_t terms;

static void term(int signal)
{
	terms += signal == SIGTERM;
}

static int64_t read_us(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void report(const char *how)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	printf("{\"how\": \"%s\", \"clock\": %ld, \"rusage\": %ld, \"thread\": %ld}\n", how,
	       (long)read_us(CLOCK_PROCESS_CPUTIME_ID),
	       (long)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
		       usage.ru_utime.tv_usec + usage.ru_stime.tv_usec,
	       (long)read_us(CLOCK_THREAD_CPUTIME_ID));
	fflush(stdout);
}

static void live(const char *how)
{
	report(how);
	while (terms < 1)
		pause();
	report(how);
	_exit(0);
}

static pid_t burning(void)
{
	pid_t child = fork();

	if (child)
		return child;
	while (read_us(CLOCK_PROCESS_CPUTIME_ID) < BURN_MS * 1000)
		;
	for (;;)
		pause();
}

static void choose_next_id(pid_t id)
{
	char text[16];
	int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY);
	int length = snprintf(text, sizeof(text), "%d", id - 1);

	if (write(fd, text, (size_t)length) != length)
		perror("ns_last_pid");
	close(fd);
}

static pid_t again(int spawned, char *self)
{
	char *argv[] = { self, (char *)"spawned", NULL };
	pid_t child;

	if (spawned) {
		posix_spawn(&child, self, NULL, NULL, argv, environ);
		return child;
	}
	child = fork();
	if (!child) {
		terms = 0;
		live("forked");
	}
	return child;
}

int main(int argc, char **argv)
{
	pid_t first[CHILDREN], second[CHILDREN];

	signal(SIGTERM, term);
	if (argc > 1)
		live("spawned");

	for (int i = 0; i < CHILDREN; i++)
		first[i] = burning();
	while (terms < 1)
		usleep(1000);
	for (int i = 0; i < CHILDREN; i++) {
		kill(first[i], SIGKILL);
		/* past the shim, which therefore does not know that it has ended */
		while (syscall(SYS_wait4, first[i], NULL, 0, NULL) < 0)
			;
		choose_next_id(first[i]);
		second[i] = again(i, argv[0]);
		if (second[i] != first[i])
			printf("{\"how\": \"not reborn\"}\n");
	}
	usleep(200000);
	for (int i = 0; i < CHILDREN; i++) {
		clockid_t clock;

		clock_getcpuclockid(second[i], &clock);
		printf("{\"how\": \"seen\", \"clock\": %ld}\n", (long)read_us(clock));
	}
	fflush(stdout);
	while (terms < 2)
		usleep(1000);
	for (int i = 0; i < CHILDREN; i++) {
		kill(second[i], SIGTERM);
		waitpid(second[i], NULL, 0);
	}
	return 0;
}
