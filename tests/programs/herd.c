// SPDX-License-Identifier: MIT
/*
 * herd.c - many threads wait in epoll_wait() for one descriptor.
 *
 *     herd THREADS EVENTS
 *
 * Makes so many events, each when all threads are asleep, and prints how often a thread slept: once
 * an event if an event wakes one of them, and once more for each at the end.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static int epfd, source;
static atomic_long seen, slept;
static atomic_bool over;

static void *wait_for_events(void *id)
{
	struct epoll_event event;
	struct rusage before, after;

	*(pid_t *)id = gettid();
	getrusage(RUSAGE_THREAD, &before);
	while (!over)
		if (epoll_wait(epfd, &event, 1, -1) == 1)
			seen++;
	getrusage(RUSAGE_THREAD, &after);
	slept += after.ru_nvcsw - before.ru_nvcsw;
	return NULL;
}

static void pause_for(long ns)
{
	nanosleep(&(struct timespec){ 0, ns }, NULL);
}

static void await_asleep(pid_t thread)
{
	char path[64], state = 'R';

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", thread);
	for (;; pause_for(100000)) {
		FILE *stat = fopen(path, "r");

		if (!stat || fscanf(stat, "%*d (%*[^)]) %c", &state) != 1)
			abort();
		fclose(stat);
		if (state == 'S')
			break;
	}
}

int main(int argc, char **argv)
{
	int threads = argc > 1 ? atoi(argv[1]) : 8;
	long events = argc > 2 ? atol(argv[2]) : 100;
	struct epoll_event edge = { .events = EPOLLIN | EPOLLET };
	_Atomic pid_t *id = calloc(threads, sizeof(*id));
	pthread_t *thread = calloc(threads, sizeof(*thread));
	uint64_t one = 1;

	epfd = epoll_create1(0);
	source = eventfd(0, 0);
	epoll_ctl(epfd, EPOLL_CTL_ADD, source, &edge);
	for (int i = 0; i < threads; i++)
		pthread_create(&thread[i], NULL, wait_for_events, (void *)&id[i]);
	for (long n = 0; n <= events; n++) {
		while (seen < n)
			pause_for(100000);
		for (int i = 0; i < threads; i++) {
			while (!id[i])
				pause_for(100000);
			await_asleep(id[i]);
		}
		over = n == events;
		if (!over && write(source, &one, sizeof(one)) < 0)
			abort();
	}
	for (int i = 0; i < threads; i++) /* each event ends one of them */
		if (write(source, &one, sizeof(one)) < 0)
			abort();
		else
			while (seen < events + i + 1)
				pause_for(100000);
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	printf("%ld\n", (long)slept);
	return 0;
}
