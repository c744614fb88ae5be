// SPDX-License-Identifier: MIT
/*
 * sockets.c - calls on sockets that have a time-out, on each kind of them that there is a pair of.
 */
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "beats.h"

static char byte;
static struct iovec vector = { &byte, 1 };

static int timed(int fd, const struct asked *asked)
{
	struct timeval timeout = { asked->time.tv_sec, asked->time.tv_nsec / 1000 };

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	return fd;
}

static int timed_pair(int type, const struct asked *asked)
{
	int pair[2];

	socketpair(AF_UNIX, type, 0, pair);
	return timed(pair[0], asked);
}

static int full(const struct asked *asked)
{
	int fd = timed_pair(SOCK_STREAM, asked);
	char filler[4096] = { 0 };

	while (send(fd, filler, sizeof(filler), MSG_DONTWAIT) > 0)
		;
	return fd;
}

static int listening(const struct asked *asked)
{
	struct sockaddr_in any = { .sin_family = AF_INET };
	int fd = timed(socket(AF_INET, SOCK_STREAM, 0), asked);

	bind(fd, (struct sockaddr *)&any, sizeof(any));
	listen(fd, 1);
	return fd;
}

static int receive(struct asked *asked)
{
	return error_of(recv(timed_pair(SOCK_STREAM, asked), &byte, 1, 0));
}

static int receive_from(struct asked *asked)
{
	return error_of(recvfrom(timed_pair(SOCK_DGRAM, asked), &byte, 1, 0, NULL, NULL));
}

static int receive_message(struct asked *asked)
{
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

	return error_of(recvmsg(timed_pair(SOCK_SEQPACKET, asked), &message, 0));
}

static int receive_messages(struct asked *asked)
{
	struct mmsghdr message = { .msg_hdr = { .msg_iov = &vector, .msg_iovlen = 1 } };

	return error_of(recvmmsg(timed_pair(SOCK_DGRAM, asked), &message, 1, 0, NULL));
}

static int reading(struct asked *asked)
{
	return error_of(read(timed_pair(SOCK_STREAM, asked), &byte, 1));
}

static int reading_vector(struct asked *asked)
{
	return error_of(readv(timed_pair(SOCK_STREAM, asked), &vector, 1));
}

static int accepting(struct asked *asked)
{
	return error_of(accept(listening(asked), NULL, NULL));
}

static int accepting_4(struct asked *asked)
{
	return error_of(accept4(listening(asked), NULL, NULL, SOCK_CLOEXEC));
}

static int sending(struct asked *asked)
{
	return error_of(send(full(asked), &byte, 1, 0));
}

static int sending_to(struct asked *asked)
{
	return error_of(sendto(full(asked), &byte, 1, 0, NULL, 0));
}

static int sending_message(struct asked *asked)
{
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

	return error_of(sendmsg(full(asked), &message, 0));
}

static int sending_messages(struct asked *asked)
{
	struct mmsghdr message = { .msg_hdr = { .msg_iov = &vector, .msg_iovlen = 1 } };

	return error_of(sendmmsg(full(asked), &message, 1, 0));
}

static int writing(struct asked *asked)
{
	return error_of(write(full(asked), &byte, 1));
}

static int writing_vector(struct asked *asked)
{
	return error_of(writev(full(asked), &vector, 1));
}

#define TIMED(title, function)                                                                     \
	{ .name = title,                                                                           \
	  .clock = CLOCK_MONOTONIC,                                                                \
	  .call = function,                                                                        \
	  .expected = EAGAIN,                                                                      \
	  .interruptible = true }

static const struct wait waits[] = {
	TIMED("accept", accepting),
	TIMED("accept4", accepting_4),
	TIMED("read", reading),
	TIMED("readv", reading_vector),
	TIMED("recv", receive),
	TIMED("recvfrom", receive_from),
	TIMED("recvmsg", receive_message),
	TIMED("recvmmsg", receive_messages),
	TIMED("send", sending),
	TIMED("sendto", sending_to),
	TIMED("sendmsg", sending_message),
	TIMED("sendmmsg", sending_messages),
	TIMED("write", writing),
	TIMED("writev", writing_vector),
	{ 0 },
};

const struct family sockets = { .name = "sockets", .waits = waits };
