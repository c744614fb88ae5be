// SPDX-License-Identifier: MIT
/*
 * owners.c - threads that wait until an absolute time and do not live to see it.
 *
 *     owners churn COUNT      create so many threads, most of which wait; cancel a tenth of them
 *     owners killed           kill a process in a wait, then wait in its neighbour's signal handler
 *     owners replaced         the same, but another thread of it starts a program
 *     owners alive            the same, but let it live
 *
 * Prints, as JSON, [tid of what waited first, tid of the neighbour], then stays until killed.
 */
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 50 };

static const char *self;

static void wait_for(long ns)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (until.tv_nsec + ns) / 1000000000;
	until.tv_nsec = (until.tv_nsec + ns) % 1000000000;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void wait_an_hour(int signal)
{
	(void)signal;
	wait_for(3600000000000);
}

static void *brief_wait(void *unused)
{
	wait_for(10000);
	return unused;
}

static void *long_wait(void *tid)
{
	if (tid)
		*(volatile pid_t *)tid = gettid();
	wait_an_hour(0);
	return NULL;
}

static void churn(long count)
{
	pthread_t thread[BATCH];

	for (; count > 0; count -= BATCH) {
		for (int i = 0; i < BATCH; i++)
			pthread_create(&thread[i], NULL, i % 10 ? brief_wait : long_wait, NULL);
		for (int i = 0; i < BATCH; i += 10)
			pthread_cancel(thread[i]);
		for (int i = 0; i < BATCH; i++)
			pthread_join(thread[i], NULL);
	}
}

/* A process of which one thread, whose id is returned, waits. */
static pid_t waiting_process(pid_t *pid, bool replace)
{
	int ends[2];
	pid_t tid = 0;

	if (pipe(ends))
		abort();
	*pid = fork();
	if (!*pid) {
		pthread_t thread;

		/* so that the thread id before the one that matters is nobody's */
		pthread_create(&thread, NULL, brief_wait, NULL);
		pthread_join(thread, NULL);
		pthread_create(&thread, NULL, long_wait, &tid);
		while (!*(volatile pid_t *)&tid)
			;
		usleep(200000); /* until it waits */
		if (write(ends[1], &tid, sizeof(tid)) != sizeof(tid))
			abort();
		if (replace)
			execl(self, "slots", "nothing", NULL);
		pause();
	}
	if (read(ends[0], &tid, sizeof(tid)) != sizeof(tid))
		abort();
	return tid;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	volatile pid_t neighbour = 0;
	pthread_t thread;
	pid_t pid, tid;
	FILE *last;

	self = argv[0];
	if (!strcmp(mode, "churn")) {
		churn(atol(argv[2]));
		printf("[0, 0]\n");
	} else if (strcmp(mode, "nothing")) {
		tid = waiting_process(&pid, !strcmp(mode, "replaced"));
		if (!strcmp(mode, "killed")) {
			kill(pid, SIGKILL);
			waitpid(pid, NULL, 0);
		}
		usleep(200000);
		last = fopen("/proc/sys/kernel/ns_last_pid", "w");
		fprintf(last, "%d", tid - 2);
		fclose(last);

		/* its waits take the place before that of the first, and then the next one free */
		signal(SIGUSR1, wait_an_hour);
		pthread_create(&thread, NULL, long_wait, (void *)&neighbour);
		usleep(100000);
		pthread_kill(thread, SIGUSR1);
		usleep(100000);
		printf("[%d, %d]\n", tid, neighbour);
	}
	fflush(stdout);
	for (;;)
		pause();
}
