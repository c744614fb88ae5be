// SPDX-License-Identifier: MIT
/*
 * costs.c - what clock reads, and waits that are over at once, cost in this process; run by
 * costs.py.
 *
 *     costs call|syscall
 *
 * A line for each: the nanoseconds of one in the fastest batch, by how many seconds its clock
 * differs from the kernel's (- if it has none to read), and its name.  A batch is short enough to
 * fit between two timer ticks, and is timed by system calls that no preload can catch.  By
 * "syscall", clocks are read with the system call, and nothing else is done.
 */
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { BATCHES = 40, CALLS = 1000, SLOW_CALLS = 20 };

static inline long kernel_clock_gettime(clockid_t id, struct timespec *ts)
{
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(SYS_clock_gettime), "D"(id), "S"(ts)
			 : "rcx", "r11", "memory");
	return ret;
}

static double now(void)
{
	struct timespec ts;

	kernel_clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1e9 + ts.tv_nsec;
}

static const struct timespec past = { 1, 0 };
static struct timespec future, reading;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_cond_t cond;
static sem_t semaphore;
static struct epoll_event event = { .events = EPOLLIN };
static struct pollfd readable = { .events = POLLIN };
static int epfd, timed;
static char byte;

static void prepare(void)
{
	struct timeval hour = { .tv_sec = 3600 };
	pthread_condattr_t attr;
	int pair[2];

	clock_gettime(CLOCK_MONOTONIC, &future);
	future.tv_sec += 3600;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&cond, &attr);
	sem_init(&semaphore, 0, BATCHES * CALLS);
	epfd = epoll_create1(0);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || write(pair[1], &byte, 1) != 1 ||
	    epoll_ctl(epfd, EPOLL_CTL_ADD, pair[0], &event))
		abort();
	timed = pair[0];
	readable.fd = pair[0];
	/* last: what other calls cost with it is what they cost in a program that does this */
	setsockopt(timed, SOL_SOCKET, SO_RCVTIMEO, &hour, sizeof(hour));
}

/* Evaluates call in many short batches and prints the fastest. */
#define COST(name, reads, calls, call)                                                             \
	do {                                                                                       \
		double best = 1e18;                                                                \
                                                                                                   \
		for (int batch = 0; batch < BATCHES; batch++) {                                    \
			double begin = now(), took;                                                \
                                                                                                   \
			for (int n = 0; n < (calls); n++)                                          \
				call;                                                              \
			took = (now() - begin) / (calls);                                          \
			if (took < best)                                                           \
				best = took;                                                       \
		}                                                                                  \
		if (failed)                                                                        \
			best = 0;                                                                  \
		failed = false;                                                                    \
		printf("%.2f ", best);                                                             \
		if (reads)                                                                         \
			printf("%ld", (long)reading.tv_sec);                                       \
		else                                                                               \
			printf("-");                                                               \
		printf(" %s\n", name);                                                             \
	} while (0)

static bool failed;

static void require(int result, int expected)
{
	failed |= result != expected;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		clockid_t id;
	} clock[] = {
		{ "MONOTONIC", CLOCK_MONOTONIC },
		{ "MONOTONIC_RAW", CLOCK_MONOTONIC_RAW },
		{ "MONOTONIC_COARSE", CLOCK_MONOTONIC_COARSE },
		{ "BOOTTIME", CLOCK_BOOTTIME },
		{ "REALTIME", CLOCK_REALTIME },
	};
	int by_syscall = argc > 1 && !strcmp(argv[1], "syscall");

	for (size_t i = 0; i < sizeof(clock) / sizeof(clock[0]); i++) {
		clockid_t id = clock[i].id;

		if (by_syscall)
			COST(clock[i].name, true, CALLS, kernel_clock_gettime(id, &reading));
		else
			COST(clock[i].name, true, CALLS, clock_gettime(id, &reading));
	}
	if (by_syscall)
		return 0;

	prepare();
	COST("pthread_mutex_clocklock, free", false, CALLS, {
		require(pthread_mutex_clocklock(&mutex, CLOCK_MONOTONIC, &future), 0);
		pthread_mutex_unlock(&mutex);
	});
	COST("pthread_rwlock_clockrdlock, free", false, CALLS, {
		require(pthread_rwlock_clockrdlock(&rwlock, CLOCK_MONOTONIC, &future), 0);
		pthread_rwlock_unlock(&rwlock);
	});
	COST("sem_clockwait, available", false, CALLS,
	     require(sem_clockwait(&semaphore, CLOCK_MONOTONIC, &future), 0));
	pthread_mutex_lock(&mutex);
	COST("pthread_cond_timedwait, past", false, SLOW_CALLS,
	     pthread_cond_timedwait(&cond, &mutex, &past));
	COST("clock_nanosleep, past", false, SLOW_CALLS,
	     require(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &past, NULL), 0));
	COST("poll, nothing, 0 ms", false, CALLS, require(poll(NULL, 0, 0), 0));
	COST("poll, ready", false, CALLS, require(poll(&readable, 1, 1000), 1));
	COST("epoll_wait, ready", false, CALLS, require(epoll_wait(epfd, &event, 1, 1000), 1));
	COST("recv with a time-out, ready", false, CALLS,
	     require((int)recv(timed, &byte, 1, MSG_PEEK), 1));
	return 0;
}
