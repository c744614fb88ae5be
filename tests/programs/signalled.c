// SPDX-License-Identifier: MIT
/*
 * signalled.c - a thread in every wait that a signal interrupts, and whose the handler was.
 *
 *     signalled MILLISECONDS [main-blocks | block | ignore | restart]
 *
 * For each thread in the order in which they are created, prints a JSON object: how its wait ended,
 * and how often SIGUSR1's handler ran in it; the last one is the main thread's, which waits for
 * the others.  Waits without a time-out end when the others have.
 */
#include <errno.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long milliseconds;
static struct timespec span;

static struct timespec until(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	now.tv_sec += span.tv_sec;
	now.tv_nsec += span.tv_nsec;
	if (now.tv_nsec >= 1000000000) {
		now.tv_nsec -= 1000000000;
		now.tv_sec++;
	}
	return now;
}

static int sem_timed(void)
{
	struct timespec deadline = until(CLOCK_REALTIME);
	sem_t sem;

	sem_init(&sem, 0, 0);
	return sem_timedwait(&sem, &deadline);
}

static int sem_clock(clockid_t clock)
{
	struct timespec deadline = until(clock);
	sem_t sem;

	sem_init(&sem, 0, 0);
	return sem_clockwait(&sem, clock, &deadline);
}

static int sem_monotonic(void)
{
	return sem_clock(CLOCK_MONOTONIC);
}

static int sem_realtime(void)
{
	return sem_clock(CLOCK_REALTIME);
}

static sigset_t usr2;
static pthread_t signal_waiter;

static int signal_timed(void)
{
	return sigtimedwait(&usr2, NULL, &span);
}

static int signal_forever(void)
{
	signal_waiter = pthread_self();
	return sigwaitinfo(&usr2, NULL) < 0 ? -1 : 0;
}

static int raw_signal_timed(void)
{
	return (int)syscall(SYS_rt_sigtimedwait, &usr2, NULL, &span, 8);
}

static char byte;

static int timed_socket(int domain, int type)
{
	struct timeval timeout = { span.tv_sec, span.tv_nsec / 1000 };
	int fd = socket(domain, type, 0);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	return fd;
}

static int receiving(void)
{
	return (int)recv(timed_socket(AF_INET, SOCK_DGRAM), &byte, 1, 0);
}

static int reading(void)
{
	return (int)read(timed_socket(AF_INET, SOCK_DGRAM), &byte, 1);
}

static int raw_receiving(void)
{
	return (int)syscall(SYS_recvfrom, timed_socket(AF_INET, SOCK_DGRAM), &byte, 1, 0, NULL,
			    NULL);
}

static int accepting(void)
{
	struct sockaddr_in any = { .sin_family = AF_INET };
	int fd = timed_socket(AF_INET, SOCK_STREAM), yes = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof(yes));
	bind(fd, (struct sockaddr *)&any, sizeof(any));
	listen(fd, 1);
	return accept(fd, NULL, NULL);
}

static struct epoll_event event;

static int epoll(void)
{
	return epoll_wait(epoll_create1(0), &event, 1, milliseconds);
}

static int epoll_masked(void)
{
	sigset_t mask;

	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	return epoll_pwait(epoll_create1(0), &event, 1, milliseconds, &mask);
}

static int epoll_unmasked(void)
{
	return epoll_pwait(epoll_create1(0), &event, 1, milliseconds, NULL);
}

static int epoll_two(void)
{
	return epoll_pwait2(epoll_create1(0), &event, 1, &span, NULL);
}

static int raw_epoll(void)
{
	return (int)syscall(SYS_epoll_wait, epoll_create1(0), &event, 1, milliseconds);
}

static int raw_futex(void)
{
	uint32_t word = 0;

	return (int)syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &span);
}

static int raw_futex_realtime(void)
{
	struct timespec deadline = until(CLOCK_REALTIME);
	uint32_t word = 0;

	return (int)syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME, 0,
			    &deadline, NULL, FUTEX_BITSET_MATCH_ANY);
}

static int raw_nanosleep(void)
{
	return (int)syscall(SYS_nanosleep, &span, NULL);
}

static int polling(void)
{
	return poll(NULL, 0, milliseconds);
}

static int sleeping(void)
{
	return nanosleep(&span, NULL);
}

static int sleeping_until(void)
{
	struct timespec deadline = until(CLOCK_MONOTONIC);
	int err = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL);

	errno = err;
	return err ? -1 : 0;
}

static int selecting(void)
{
	struct timeval timeout = { span.tv_sec, span.tv_nsec / 1000 };

	return select(0, NULL, NULL, NULL, &timeout);
}

static int ppolling(void)
{
	return ppoll(NULL, 0, &span, NULL);
}

static int ends[2]; /* of a pipe */

static int epoll_forever(void)
{
	struct epoll_event readable = { .events = EPOLLIN };
	int fd = epoll_create1(0);

	epoll_ctl(fd, EPOLL_CTL_ADD, ends[0], &readable);
	return epoll_wait(fd, &readable, 1, -1) < 0 ? -1 : 0;
}

static int data[2]; /* of another pipe */
static sem_t never;

static int reading_forever(void)
{
	return (int)read(data[0], &byte, 1);
}

static int semaphore_forever(void)
{
	return sem_wait(&never);
}

static const struct wait {
	const char *name;
	int (*call)(void);
	int expected;
} waits[] = {
	{ "sem_timedwait", sem_timed, ETIMEDOUT },
	{ "sem_clockwait MONOTONIC", sem_monotonic, ETIMEDOUT },
	{ "sem_clockwait REALTIME", sem_realtime, ETIMEDOUT },
	{ "sigtimedwait", signal_timed, EAGAIN },
	{ "syscall rt_sigtimedwait", raw_signal_timed, EAGAIN },
	{ "sigwaitinfo", signal_forever, 0 },
	{ "recv", receiving, EAGAIN },
	{ "read", reading, EAGAIN },
	{ "syscall recvfrom", raw_receiving, EAGAIN },
	{ "accept", accepting, EAGAIN },
	{ "epoll_wait", epoll, 0 },
	{ "epoll_wait without end", epoll_forever, 0 },
	{ "epoll_pwait with a mask", epoll_masked, 0 },
	{ "epoll_pwait", epoll_unmasked, 0 },
	{ "epoll_pwait2", epoll_two, 0 },
	{ "syscall epoll_wait", raw_epoll, 0 },
	{ "syscall futex WAIT", raw_futex, ETIMEDOUT },
	{ "syscall futex WAIT_BITSET REALTIME", raw_futex_realtime, ETIMEDOUT },
	{ "syscall nanosleep", raw_nanosleep, 0 },
	{ "poll", polling, 0 },
	{ "nanosleep", sleeping, 0 },
	{ "clock_nanosleep TIMER_ABSTIME", sleeping_until, 0 },
	{ "select", selecting, 0 },
	{ "ppoll", ppolling, 0 },
	{ "read without end", reading_forever, 0 },
	{ "sem_wait", semaphore_forever, 0 },
};
enum { WAITS = sizeof(waits) / sizeof(waits[0]), ENDLESS = 4 };

static __thread volatile int handled;
static atomic_int ended;

static void handle(int signal)
{
	(void)signal;
	handled++;
}

static struct result {
	int err, handled;
} results[WAITS];

static bool unblock; /* in all but the main thread */
static sigset_t usr1;

static void *perform(void *arg)
{
	const struct wait *wait = arg;
	struct result *result = &results[wait - waits];

	if (unblock)
		pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
	result->err = wait->call() < 0 ? errno : 0;
	result->handled = handled;
	ended++;
	return NULL;
}

static void show(const char *name, int err, int expected, int times)
{
	printf("{\"wait\": \"%s\", \"returned\": \"%s\", \"expected\": \"%s\", \"handled\": %d}\n",
	       name, strerrorname_np(err), strerrorname_np(expected), times);
}

int main(int argc, char **argv)
{
	const char *how = argc > 2 ? argv[2] : "";
	struct sigaction action = { .sa_handler = strcmp(how, "ignore") ? handle : SIG_IGN };
	pthread_t thread[WAITS];

	unblock = !strcmp(how, "main-blocks");
	milliseconds = atol(argv[1]);
	span = (struct timespec){ milliseconds / 1000, milliseconds % 1000 * 1000000 };
	if (!strcmp(how, "restart"))
		action.sa_flags = SA_RESTART;
	sigaction(SIGUSR1, &action, NULL);
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigemptyset(&usr2);
	sigaddset(&usr2, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &usr2, NULL);
	if (unblock || !strcmp(how, "block"))
		pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	sem_init(&never, 0, 0);
	if (pipe(ends) || pipe(data))
		abort();

	for (int i = 0; i < WAITS; i++)
		pthread_create(&thread[i], NULL, perform, (void *)&waits[i]);
	while (ended < WAITS - ENDLESS)
		nanosleep(&(struct timespec){ 0, 10000000 }, NULL);
	pthread_kill(signal_waiter, SIGUSR2);
	sem_post(&never);
	if (write(ends[1], &byte, 1) < 0 || write(data[1], &byte, 1) < 0)
		abort();
	for (int i = 0; i < WAITS; i++) {
		pthread_join(thread[i], NULL);
		show(waits[i].name, results[i].err, waits[i].expected, results[i].handled);
	}
	show("main", 0, 0, handled);
	return 0;
}
