// SPDX-License-Identifier: MIT
/*
 * refusals.c - makes calls that have nothing to wait for, and prints what each returned.
 *
 * Bad arguments, time-outs of 0, and what is there already: under the shim and without it the
 * output must be the same.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* errno must survive a success */
#define SHOW(call)                                                                                 \
	do {                                                                                       \
		long result;                                                                       \
                                                                                                   \
		errno = EXDEV;                                                                     \
		result = (call);                                                                   \
		printf("%s = %ld %s\n", #call, result, strerrorname_np(errno));                    \
	} while (0)

int main(void)
{
	/* as a value that no compiler knows */
	char *volatile inaccessible = mmap(NULL, 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const struct timespec *nowhere = (struct timespec *)inaccessible;
	struct timespec none = { 0, 0 }, odd = { 0, 1000000000 }, negative = { -1, 0 }, left = none;
	struct timespec tick = { 0, 1 };
	struct epoll_event event = { .events = EPOLLIN };
	struct sembuf up = { .sem_op = 1 }, down = { .sem_op = -1 };
	int id = semget(IPC_PRIVATE, 1, 0600), epfd = epoll_create1(0), fds[2], pair[2];
	pthread_mutex_t normal = PTHREAD_MUTEX_INITIALIZER;
	pthread_mutex_t recursive = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
	pthread_mutex_t checking = PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP;
	pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
	struct pollfd readable;
	char byte = 0;
	sigset_t set;
	sem_t sem;

	if (pipe(fds) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return 1;
	readable = (struct pollfd){ .fd = fds[0], .events = POLLIN };
	sigemptyset(&set);
	sem_init(&sem, 0, 0);

	SHOW(nanosleep(&tick, NULL));
	SHOW(nanosleep(&tick, &left));
	SHOW(nanosleep(&none, NULL));
	SHOW(nanosleep(&odd, NULL));
	SHOW(nanosleep(&negative, NULL));
	SHOW(nanosleep(nowhere, NULL));
	SHOW(nanosleep(&tick, (struct timespec *)nowhere));
	SHOW(clock_nanosleep(CLOCK_MONOTONIC, 0, &tick, NULL));
	SHOW(clock_nanosleep(CLOCK_MONOTONIC, 0, &odd, NULL));
	SHOW(clock_nanosleep(CLOCK_MONOTONIC, 0, nowhere, NULL));
	SHOW(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &none, NULL));
	SHOW(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &odd, NULL));
	SHOW(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, nowhere, NULL));
	SHOW(clock_nanosleep(CLOCK_REALTIME, 0, &tick, NULL));
	SHOW(clock_nanosleep(CLOCK_TAI, 0, &tick, NULL));
	SHOW(clock_nanosleep(CLOCK_MONOTONIC_RAW, 0, &tick, NULL));
	SHOW(clock_nanosleep(CLOCK_MONOTONIC_COARSE, 0, &tick, NULL));
	SHOW(clock_nanosleep(CLOCK_THREAD_CPUTIME_ID, 0, &tick, NULL));
	SHOW(clock_nanosleep(12345, 0, &tick, NULL));
	SHOW(usleep(0));
	SHOW(sleep(0));
	SHOW(thrd_sleep(&tick, NULL));
	SHOW(thrd_sleep(&odd, NULL));

	SHOW(poll(NULL, 0, 0));
	SHOW(poll(&readable, 1, 0));
	SHOW(poll((struct pollfd *)nowhere, 1, 1));
	SHOW(poll((struct pollfd *)nowhere, 1, -1));
	SHOW(poll((struct pollfd *)nowhere, UINT_MAX, 1));
	SHOW(epoll_wait(-1, &event, 1, 1));
	SHOW(epoll_wait(fds[0], &event, 1, 1));
	SHOW(epoll_wait(epfd, &event, 0, 1));
	SHOW(epoll_wait(epfd, &event, 1, 0));
	SHOW(epoll_wait(epfd, &event, 1, 1));
	SHOW(epoll_pwait(epfd, &event, 1, 1, &set));
	SHOW(epoll_pwait(epfd, &event, 1, 1, (sigset_t *)nowhere));
	SHOW(epoll_pwait2(epfd, &event, 1, &none, NULL));
	SHOW(epoll_pwait2(epfd, &event, 1, &tick, NULL));
	SHOW(epoll_pwait2(epfd, &event, 1, &odd, NULL));
	SHOW(epoll_pwait2(epfd, &event, 1, &negative, NULL));
	SHOW(epoll_pwait2(epfd, &event, 1, nowhere, NULL));

	SHOW(sigtimedwait(&set, NULL, &none));
	SHOW(sigtimedwait(&set, NULL, &tick));
	SHOW(sigtimedwait(&set, NULL, &odd));
	SHOW(sigtimedwait(&set, NULL, nowhere));
	SHOW(sigtimedwait((sigset_t *)nowhere, NULL, &none));
	SHOW(sem_timedwait(&sem, &none));
	SHOW(sem_timedwait(&sem, &odd));
	SHOW(semop(id, &up, 1));
	SHOW(semop(id, &down, 1));
	SHOW(semop(-1, &down, 1));
	SHOW(semtimedop(id, &down, 1, &none));
	SHOW(semtimedop(id, &down, 1, &tick));
	SHOW(semtimedop(id, &down, 1, &odd));
	SHOW(semtimedop(id, &down, 1, nowhere));

	SHOW(syscall(SYS_nanosleep, &odd, NULL));
	SHOW(syscall(SYS_nanosleep, nowhere, NULL));
	SHOW(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &tick, NULL));
	SHOW(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &odd, NULL));
	SHOW(syscall(SYS_poll, NULL, 0, 0));
	SHOW(syscall(SYS_epoll_wait, epfd, &event, 1, 1));
	SHOW(syscall(SYS_epoll_wait, -1, &event, 1, 1));
	SHOW(syscall(SYS_epoll_pwait, epfd, &event, 1, 1, &set, 8));
	SHOW(syscall(SYS_epoll_pwait, epfd, &event, 1, 1, &set, 4));
	SHOW(syscall(SYS_rt_sigtimedwait, &set, NULL, &tick, 8));
	SHOW(syscall(SYS_rt_sigtimedwait, &set, NULL, &tick, 4));
	SHOW(syscall(SYS_rt_sigtimedwait, &set, NULL, nowhere, 8));
	SHOW(syscall(SYS_semtimedop, id, &down, 1, &tick));
	SHOW(syscall(SYS_read, -1, &byte, 1));
	SHOW(syscall(SYS_write, fds[1], nowhere, 1));
	SHOW(syscall(SYS_sysinfo, nowhere));

	/* locks that are free, taken by us, or taken as often as they may be */
	SHOW(pthread_mutex_clocklock(&normal, CLOCK_MONOTONIC, &none));
	SHOW(pthread_mutex_clocklock(&normal, CLOCK_MONOTONIC, &none));
	SHOW(pthread_mutex_clocklock(&normal, CLOCK_MONOTONIC, &odd));
	SHOW(pthread_mutex_clocklock(&recursive, CLOCK_MONOTONIC, &none));
	SHOW(pthread_mutex_clocklock(&recursive, CLOCK_MONOTONIC, &odd));
	SHOW(pthread_mutex_unlock(&recursive));
	SHOW(pthread_mutex_unlock(&recursive));
	SHOW(pthread_mutex_unlock(&recursive));
	SHOW(pthread_mutex_clocklock(&checking, CLOCK_MONOTONIC, &negative));
	SHOW(pthread_mutex_clocklock(&checking, CLOCK_MONOTONIC, &none));
	SHOW(pthread_mutex_clocklock(&checking, CLOCK_BOOTTIME, &none));
	SHOW(pthread_rwlock_clockwrlock(&rwlock, CLOCK_MONOTONIC, &none));
	SHOW(pthread_rwlock_clockwrlock(&rwlock, CLOCK_MONOTONIC, &none));
	SHOW(pthread_rwlock_clockrdlock(&rwlock, CLOCK_MONOTONIC, &none));
	SHOW(pthread_rwlock_unlock(&rwlock));
	SHOW(pthread_rwlock_clockrdlock(&rwlock, CLOCK_MONOTONIC, &odd));
	SHOW(pthread_rwlock_clockrdlock(&rwlock, CLOCK_MONOTONIC, &none));
	SHOW(pthread_rwlock_clockrdlock(&rwlock, CLOCK_MONOTONIC, &none));
	SHOW(pthread_rwlock_clockwrlock(&rwlock, CLOCK_MONOTONIC, &none));
	SHOW(sem_post(&sem));
	SHOW(sem_clockwait(&sem, CLOCK_MONOTONIC, &odd));
	SHOW(sem_clockwait(&sem, CLOCK_BOOTTIME, &none));
	SHOW(sem_clockwait(&sem, CLOCK_MONOTONIC, &negative));
	SHOW(sem_clockwait(&sem, CLOCK_MONOTONIC, &none));
	SHOW(sem_post(&sem));
	SHOW(sem_clockwait(&sem, CLOCK_MONOTONIC, &none));

	/* first as long as no socket has a time-out, then when one has */
	for (int timed = 0; timed < 2; timed++) {
		struct timeval shortest = { 0, 1 };

		SHOW(write(fds[1], &byte, 1));
		SHOW(poll(&readable, 1, -1));
		SHOW(epoll_ctl(epfd, EPOLL_CTL_ADD, fds[0], &event));
		SHOW(epoll_wait(epfd, &event, 1, -1));
		SHOW(epoll_pwait2(epfd, &event, 1, NULL, NULL));
		SHOW(read(fds[0], &byte, 1));
		SHOW(read(-1, &byte, 1));
		SHOW(recv(fds[0], &byte, 1, 0));
		SHOW(recv(pair[0], &byte, 1, MSG_DONTWAIT));
		SHOW(send(pair[1], &byte, 1, 0));
		SHOW(recv(pair[0], (char *)nowhere, 1, 0));
		SHOW(recv(pair[0], &byte, 1, 0));
		SHOW(accept(pair[0], NULL, NULL));
		SHOW(writev(pair[0], (struct iovec *)nowhere, 1));
		SHOW(setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &shortest, sizeof(shortest)));
		SHOW(setsockopt(-1, SOL_SOCKET, SO_RCVTIMEO, &shortest, sizeof(shortest)));
		SHOW(recv(pair[0], &byte, 1, 0));
	}
	semctl(id, 0, IPC_RMID);
	return 0;
}
