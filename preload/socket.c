// SPDX-License-Identifier: MIT
/*
 * socket.c - calls that wait for as long as SO_RCVTIMEO or SO_SNDTIMEO allow.
 *
 * On a socket with a time-out they fail with EINTR whenever a thread is frozen; without one the
 * kernel and CRIU execute them again, and an EINTR is a handler's.  So a program that
 * never sets such a time-out pays one look at the page a call.  After an interruption the rest
 * of the time is spent in ppoll(), for which see poll.c; then the call is made again.
 */
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "timespec.h"

NEXT(ppoll);
NEXT(setsockopt);

/* What _FORTIFY_SOURCE makes of calls; size is that of the buffer, as far as the compiler knows. */
ssize_t __read_chk(int fd, void *buffer, size_t count, size_t size);
ssize_t __recv_chk(int fd, void *buffer, size_t count, size_t size, int flags);
ssize_t __recvfrom_chk(int fd, void *buffer, size_t count, size_t size, int flags,
		       struct sockaddr *from, socklen_t *length);

struct transfer {
	uint64_t seen; /* generation when the call, or its last repetition, began */
	struct ts_time start; /* virtual MONOTONIC */
};

static struct transfer transfer_begin(void)
{
	return (struct transfer){ generation(), read_clock(CLOCK_MONOTONIC) };
}

/*
 * Must a call that failed with errno be repeated?  Not if its time is over, for which it sets
 * errno.  option is the time-out in question.
 */
static bool transfer_again(struct transfer *transfer, int fd, int option)
{
	struct pollfd ready = { .fd = fd, .events = option == SO_RCVTIMEO ? POLLIN : POLLOUT };
	uint64_t now = generation();
	struct timeval timeout;
	socklen_t length = sizeof(timeout);
	struct ts_time deadline;
	struct timespec left;
	int count;

	if (errno != EINTR || now == transfer->seen || signalled_since(transfer->seen))
		return false;
	transfer->seen = now;
	if (getsockopt(fd, SOL_SOCKET, option, &timeout, &length) ||
	    (!timeout.tv_sec && !timeout.tv_usec)) {
		errno = EINTR;
		return false;
	}
	deadline =
		ts_add(transfer->start, (struct ts_time){ timeout.tv_sec, timeout.tv_usec * 1000 });
	left = to_timespec(ts_remaining(deadline, read_clock(CLOCK_MONOTONIC)));
	count = next_ppoll(&ready, 1, &left, NULL);
	if (!count)
		errno = EAGAIN;
	return count > 0;
}

/* Evaluates call until it ends for a reason of its own. */
#define TRANSFER(fd, option, call)                                                                 \
	({                                                                                         \
		__typeof__(call) result;                                                           \
                                                                                                   \
		if (socket_timeouts_in_use()) {                                                    \
			struct transfer transfer = transfer_begin();                               \
                                                                                                   \
			do                                                                         \
				result = (call);                                                   \
			while (result < 0 && transfer_again(&transfer, fd, option));               \
		} else {                                                                           \
			result = (call);                                                           \
		}                                                                                  \
		result;                                                                            \
	})

int setsockopt(int fd, int level, int option, const void *value, socklen_t length)
{
	attach_first();
	if (level == SOL_SOCKET && (option == SO_RCVTIMEO || option == SO_SNDTIMEO))
		__atomic_store_n(&shim.task->socket_timeouts, 1, __ATOMIC_RELAXED);
	return next_setsockopt(fd, level, option, value, length);
}

/* name(parameters) is name(arguments), the first of which is fd, for as long as option allows. */
#define RECEIVE(type, name, parameters, ...)                                                       \
	NEXT(name);                                                                                \
	type name parameters                                                                       \
	{                                                                                          \
		return TRANSFER(fd, SO_RCVTIMEO, next_##name(__VA_ARGS__));                        \
	}
#define SEND(type, name, parameters, ...)                                                          \
	NEXT(name);                                                                                \
	type name parameters                                                                       \
	{                                                                                          \
		return TRANSFER(fd, SO_SNDTIMEO, next_##name(__VA_ARGS__));                        \
	}

RECEIVE(int, accept, (int fd, struct sockaddr *address, socklen_t *length), fd, address, length)
RECEIVE(int, accept4, (int fd, struct sockaddr *address, socklen_t *length, int flags), fd, address,
	length, flags)
RECEIVE(ssize_t, read, (int fd, void *buffer, size_t count), fd, buffer, count)
RECEIVE(ssize_t, __read_chk, (int fd, void *buffer, size_t count, size_t size), fd, buffer, count,
	size)
RECEIVE(ssize_t, readv, (int fd, const struct iovec *parts, int count), fd, parts, count)
RECEIVE(ssize_t, recv, (int fd, void *buffer, size_t count, int flags), fd, buffer, count, flags)
RECEIVE(ssize_t, __recv_chk, (int fd, void *buffer, size_t count, size_t size, int flags), fd,
	buffer, count, size, flags)
RECEIVE(ssize_t, recvfrom,
	(int fd, void *buffer, size_t count, int flags, struct sockaddr *from, socklen_t *length),
	fd, buffer, count, flags, from, length)
RECEIVE(ssize_t, __recvfrom_chk,
	(int fd, void *buffer, size_t count, size_t size, int flags, struct sockaddr *from,
	 socklen_t *length),
	fd, buffer, count, size, flags, from, length)
RECEIVE(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), fd, message, flags)
RECEIVE(int, recvmmsg,
	(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout),
	fd, messages, count, flags, timeout)
SEND(ssize_t, send, (int fd, const void *buffer, size_t count, int flags), fd, buffer, count, flags)
SEND(int, sendmmsg, (int fd, struct mmsghdr *messages, unsigned int count, int flags), fd, messages,
     count, flags)
SEND(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), fd, message, flags)
SEND(ssize_t, sendto,
     (int fd, const void *buffer, size_t count, int flags, const struct sockaddr *to,
      socklen_t length),
     fd, buffer, count, flags, to, length)
SEND(ssize_t, write, (int fd, const void *buffer, size_t count), fd, buffer, count)
SEND(ssize_t, writev, (int fd, const struct iovec *parts, int count), fd, parts, count)

/* Names of libc's for those that do not want POSIX in their name space. */
ssize_t __read(int fd, void *buffer, size_t count) __attribute__((alias("read"), copy(read)));
ssize_t __send(int fd, const void *buffer, size_t count, int flags)
	__attribute__((alias("send"), copy(send)));
ssize_t __write(int fd, const void *buffer, size_t count)
	__attribute__((alias("write"), copy(write)));
