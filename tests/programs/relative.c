// SPDX-License-Identifier: MIT
/*
 * relative.c - sits in every kind of relative wait at once and reports how each ended.
 *
 *     relative MILLISECONDS [SIGNAL [all | cancel]]
 *
 * Waits so long, or (unless SIGNAL is 0) until SIGUSR1, for which there is a handler, after SIGNAL
 * milliseconds.  Waits without a time-out are ended by what they wait for.  "all" are too many for
 * a task that moves.  "cancel" cancels the threads instead of sending them a signal.  Prints a JSON
 * object a wait: how long it took by its own clock and by CLOCK_REALTIME, which no migration and no
 * shim touches, what it returned, and what it said was left (-1 if it says no such thing).
 */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

enum { NS_PER_MS = 1000000, NS_PER_S = 1000000000 };
enum { GRACE_MS = 40 }; /* for threads that start late: nothing may end too early */

static long milliseconds;

static int64_t to_ns(struct timespec ts)
{
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

static struct timespec to_timespec(int64_t ns)
{
	return (struct timespec){ ns / NS_PER_S, ns % NS_PER_S };
}

static int64_t read_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return to_ns(ts);
}

/* Each returns 0 or an error number, and replaces the span by what is left, or by { -1, 0 }. */

static int error_of(int result)
{
	return result < 0 ? errno : 0;
}

static int nano(struct timespec *span)
{
	struct timespec left = { -1, 0 };
	int err = error_of(nanosleep(span, &left));

	*span = left;
	return err;
}

static int clock_nano(clockid_t clock, struct timespec *span)
{
	struct timespec left = { -1, 0 };
	int err = clock_nanosleep(clock, 0, span, &left);

	*span = left;
	return err;
}

static int clock_nano_monotonic(struct timespec *span)
{
	return clock_nano(CLOCK_MONOTONIC, span);
}

static int clock_nano_boottime(struct timespec *span)
{
	return clock_nano(CLOCK_BOOTTIME, span);
}

static int clock_nano_realtime(struct timespec *span)
{
	return clock_nano(CLOCK_REALTIME, span);
}

static int micro(struct timespec *span)
{
	int err = error_of(usleep(to_ns(*span) / 1000));

	*span = (struct timespec){ -1, 0 };
	return err;
}

static int seconds(struct timespec *span)
{
	int left = (int)sleep(span->tv_sec);

	*span = (struct timespec){ left ? left : -1, 0 };
	return left ? EINTR : 0;
}

static int c11(struct timespec *span)
{
	struct timespec left = { -1, 0 };
	int result = thrd_sleep(span, &left);

	*span = left;
	return result == -1 ? EINTR : -result;
}

/* From here on nothing says what is left, except for select(). */

static int tell_nothing(int result, struct timespec *span)
{
	*span = (struct timespec){ -1, 0 };
	return error_of(result);
}

static int to_ms(const struct timespec *span)
{
	return (int)(to_ns(*span) / NS_PER_MS);
}

static int polling(struct timespec *span)
{
	return tell_nothing(poll(NULL, 0, to_ms(span)), span);
}

static int ppolling(struct timespec *span)
{
	return tell_nothing(ppoll(NULL, 0, span, NULL), span);
}

static int selecting(struct timespec *span)
{
	struct timeval left = { span->tv_sec, span->tv_nsec / 1000 };
	int result = select(0, NULL, NULL, NULL, &left);

	*span = result ? (struct timespec){ left.tv_sec, left.tv_usec * 1000 }
		       : (struct timespec){ -1, 0 };
	return error_of(result);
}

static int pselecting(struct timespec *span)
{
	return tell_nothing(pselect(0, NULL, NULL, NULL, span, NULL), span);
}

static int epoll(struct timespec *span)
{
	struct epoll_event event;

	return tell_nothing(epoll_wait(epoll_create1(0), &event, 1, to_ms(span)), span);
}

static int epoll_p(struct timespec *span)
{
	struct epoll_event event;

	return tell_nothing(epoll_pwait(epoll_create1(0), &event, 1, to_ms(span), NULL), span);
}

static int epoll_p2(struct timespec *span)
{
	struct epoll_event event;

	return tell_nothing(epoll_pwait2(epoll_create1(0), &event, 1, span, NULL), span);
}

static int signal_timed(struct timespec *span)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return tell_nothing(sigtimedwait(&set, NULL, span), span);
}

static int semaphore(struct timespec *span)
{
	struct timespec until = to_timespec(read_ns(CLOCK_REALTIME) + to_ns(*span));
	sem_t sem;

	sem_init(&sem, 0, 0);
	return tell_nothing(sem_timedwait(&sem, &until), span);
}

static int sysv_semaphore_timed(struct timespec *span)
{
	struct sembuf down = { .sem_op = -1 };
	int id = semget(IPC_PRIVATE, 1, 0600);
	int err = tell_nothing(semtimedop(id, &down, 1, span), span);

	semctl(id, 0, IPC_RMID);
	return err;
}

/* One end of a pair of sockets whose calls take no longer than span. */
static int timed_socket(int type, const struct timespec *span)
{
	struct timeval timeout = { span->tv_sec, span->tv_nsec / 1000 };
	int pair[2];

	socketpair(AF_UNIX, type, 0, pair);
	setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	return pair[0];
}

static int full_socket(const struct timespec *span)
{
	int fd = timed_socket(SOCK_STREAM, span);
	char filler[4096] = { 0 };

	while (send(fd, filler, sizeof(filler), MSG_DONTWAIT) > 0)
		;
	return fd;
}

static char byte;
static struct iovec vector = { &byte, 1 };

static int receive(struct timespec *span)
{
	return tell_nothing((int)recv(timed_socket(SOCK_STREAM, span), &byte, 1, 0), span);
}

static int receive_from(struct timespec *span)
{
	int fd = timed_socket(SOCK_DGRAM, span);

	return tell_nothing((int)recvfrom(fd, &byte, 1, 0, NULL, NULL), span);
}

static int receive_message(struct timespec *span)
{
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

	return tell_nothing((int)recvmsg(timed_socket(SOCK_SEQPACKET, span), &message, 0), span);
}

static int receive_messages(struct timespec *span)
{
	struct mmsghdr message = { .msg_hdr = { .msg_iov = &vector, .msg_iovlen = 1 } };

	return tell_nothing(recvmmsg(timed_socket(SOCK_DGRAM, span), &message, 1, 0, NULL), span);
}

static int reading(struct timespec *span)
{
	return tell_nothing((int)read(timed_socket(SOCK_STREAM, span), &byte, 1), span);
}

static int reading_vector(struct timespec *span)
{
	return tell_nothing((int)readv(timed_socket(SOCK_STREAM, span), &vector, 1), span);
}

static int accepting(struct timespec *span)
{
	struct timeval timeout = { span->tv_sec, span->tv_nsec / 1000 };
	struct sockaddr_in any = { .sin_family = AF_INET };
	int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;

	/* another copy of this may be restored on the same host */
	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof(yes));
	bind(fd, (struct sockaddr *)&any, sizeof(any));
	listen(fd, 1);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	return tell_nothing(accept(fd, NULL, NULL), span);
}

static int sending(struct timespec *span)
{
	return tell_nothing((int)send(full_socket(span), &byte, 1, 0), span);
}

static int sending_message(struct timespec *span)
{
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

	return tell_nothing((int)sendmsg(full_socket(span), &message, 0), span);
}

static int writing(struct timespec *span)
{
	return tell_nothing((int)write(full_socket(span), &byte, 1), span);
}

static int writing_vector(struct timespec *span)
{
	return tell_nothing((int)writev(full_socket(span), &vector, 1), span);
}

/* And these have no time-out: main() ends them. */

static int event[2]; /* a pipe */
static int sysv; /* a semaphore */
static pthread_t signal_waiter;

static int polling_forever(struct timespec *span)
{
	struct pollfd readable = { .fd = event[0], .events = POLLIN };

	return tell_nothing(poll(&readable, 1, -1), span);
}

static int epoll_forever(struct timespec *span)
{
	struct epoll_event readable = { .events = EPOLLIN };
	int fd = epoll_create1(0);

	epoll_ctl(fd, EPOLL_CTL_ADD, event[0], &readable);
	return tell_nothing(epoll_wait(fd, &readable, 1, -1), span);
}

static int signal_forever(struct timespec *span)
{
	sigset_t set;

	signal_waiter = pthread_self();
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	return tell_nothing(sigwaitinfo(&set, NULL), span);
}

static int sysv_semaphore(struct timespec *span)
{
	struct sembuf down = { .sem_op = -1 };

	return tell_nothing(semop(sysv, &down, 1), span);
}

static void end_the_endless(void)
{
	struct sembuf up = { .sem_op = 1 };

	if (write(event[1], &byte, 1) < 0)
		abort();
	pthread_kill(signal_waiter, SIGUSR2);
	semop(sysv, &up, 1);
}

static const struct wait {
	const char *name;
	int (*call)(struct timespec *);
	int expected;
	clockid_t clock;
} waits[] = {
	{ "nanosleep", nano, 0, CLOCK_MONOTONIC },
	{ "clock_nanosleep MONOTONIC", clock_nano_monotonic, 0, CLOCK_MONOTONIC },
	{ "clock_nanosleep BOOTTIME", clock_nano_boottime, 0, CLOCK_BOOTTIME },
	{ "clock_nanosleep REALTIME", clock_nano_realtime, 0, CLOCK_MONOTONIC },
	{ "usleep", micro, 0, CLOCK_MONOTONIC },
	{ "sleep", seconds, 0, CLOCK_MONOTONIC },
	{ "thrd_sleep", c11, 0, CLOCK_MONOTONIC },
	{ "poll", polling, 0, CLOCK_MONOTONIC },
	{ "ppoll", ppolling, 0, CLOCK_MONOTONIC },
	{ "select", selecting, 0, CLOCK_MONOTONIC },
	{ "pselect", pselecting, 0, CLOCK_MONOTONIC },
	{ "epoll_wait", epoll, 0, CLOCK_MONOTONIC },
	{ "epoll_pwait", epoll_p, 0, CLOCK_MONOTONIC },
	{ "epoll_pwait2", epoll_p2, 0, CLOCK_MONOTONIC },
	{ "sigtimedwait", signal_timed, EAGAIN, CLOCK_MONOTONIC },
	{ "sem_timedwait", semaphore, ETIMEDOUT, CLOCK_REALTIME },
	{ "recv", receive, EAGAIN, CLOCK_MONOTONIC },
	{ "recvfrom", receive_from, EAGAIN, CLOCK_MONOTONIC },
	{ "recvmsg", receive_message, EAGAIN, CLOCK_MONOTONIC },
	{ "recvmmsg", receive_messages, EAGAIN, CLOCK_MONOTONIC },
	{ "read", reading, EAGAIN, CLOCK_MONOTONIC },
	{ "readv", reading_vector, EAGAIN, CLOCK_MONOTONIC },
	{ "accept", accepting, EAGAIN, CLOCK_MONOTONIC },
	{ "send", sending, EAGAIN, CLOCK_MONOTONIC },
	{ "sendmsg", sending_message, EAGAIN, CLOCK_MONOTONIC },
	{ "write", writing, EAGAIN, CLOCK_MONOTONIC },
	{ "writev", writing_vector, EAGAIN, CLOCK_MONOTONIC },
	{ "poll without end", polling_forever, 0, CLOCK_MONOTONIC },
	{ "epoll_wait without end", epoll_forever, 0, CLOCK_MONOTONIC },
	{ "sigwaitinfo", signal_forever, 0, CLOCK_MONOTONIC },
	/* CRIU leaves System V semaphores behind, so these are only for a task that stays */
	{ "semtimedop", sysv_semaphore_timed, EAGAIN, CLOCK_MONOTONIC },
	{ "semop", sysv_semaphore, 0, CLOCK_MONOTONIC },
};
enum { WAITS = sizeof(waits) / sizeof(waits[0]), LEFT_BEHIND = 2 };

static const char *name_of(clockid_t clock)
{
	return clock == CLOCK_BOOTTIME   ? "boottime"
	       : clock == CLOCK_REALTIME ? "realtime"
					 : "monotonic";
}

static pthread_barrier_t begun;

static void *perform(void *arg)
{
	const struct wait *wait = arg;
	int64_t asked = milliseconds * NS_PER_MS, real, start, took;
	struct timespec span = to_timespec(asked);
	int err;

	pthread_barrier_wait(&begun);
	real = read_ns(CLOCK_REALTIME);
	start = read_ns(wait->clock);
	err = wait->call(&span);
	took = read_ns(wait->clock) - start;
	real = read_ns(CLOCK_REALTIME) - real;

	flockfile(stdout);
	printf("{\"wait\": \"%s\", \"clock\": \"%s\", \"returned\": \"%s\", \"expected\": \"%s\", "
	       "\"asked_ns\": %ld, \"took_ns\": %ld, \"real_ns\": %ld, \"left_ns\": %ld}\n",
	       wait->name, name_of(wait->clock), strerrorname_np(err),
	       strerrorname_np(wait->expected), asked, took, real,
	       span.tv_sec < 0 ? -1 : to_ns(span));
	fflush(stdout);
	funlockfile(stdout);
	return NULL;
}

static void handler(int signal)
{
	(void)signal;
}

static void sleep_until(int64_t deadline)
{
	struct timespec until = to_timespec(deadline);

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL))
		;
}

int main(int argc, char **argv)
{
	long signal_after = argc > 2 ? atol(argv[2]) : 0;
	const char *how = argc > 3 ? argv[3] : "";
	int count = strcmp(how, "all") ? WAITS - LEFT_BEHIND : WAITS, cancelled = 0;
	bool cancel = !strcmp(how, "cancel");
	struct sigaction action = { .sa_handler = handler };
	pthread_t thread[WAITS];
	int64_t start;
	sigset_t set;

	milliseconds = argc > 1 ? atol(argv[1]) : 1000;
	sigaction(SIGUSR1, &action, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	if (pipe(event))
		abort();
	sysv = semget(IPC_PRIVATE, 1, 0600);

	pthread_barrier_init(&begun, NULL, count + 1);
	for (int i = 0; i < count; i++)
		pthread_create(&thread[i], NULL, perform, (void *)&waits[i]);
	pthread_barrier_wait(&begun);
	start = read_ns(CLOCK_MONOTONIC);
	sleep_until(start + (signal_after ? signal_after : milliseconds + GRACE_MS) * NS_PER_MS);
	for (int i = 0; signal_after && i < count; i++)
		cancel ? pthread_cancel(thread[i]) : pthread_kill(thread[i], SIGUSR1);
	if (!signal_after)
		end_the_endless();
	for (int i = 0; i < count; i++) {
		void *result;

		pthread_join(thread[i], &result);
		cancelled += result == PTHREAD_CANCELED;
	}
	if (cancel)
		printf("{\"cancelled\": %d}\n", cancelled);
	semctl(sysv, 0, IPC_RMID);
	return 0;
}
