// SPDX-License-Identifier: MIT
/*
 * lookup_library.c - an ordinary library that looks behind itself, and wraps poll().
 */
#include <dlfcn.h>
#include <poll.h>

static long polls;

void *library_next(const char *name)
{
	void *volatile found = dlsym(RTLD_NEXT, name); /* no tail call: by us, not by our caller */

	return found;
}

void *library_next_version(const char *name, const char *version)
{
	void *volatile found = dlvsym(RTLD_NEXT, name, version);

	return found;
}

void *library_default(const char *name)
{
	void *volatile found = dlsym(RTLD_DEFAULT, name);

	return found;
}

long library_polls(void)
{
	return polls;
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	static __typeof__(poll) *next, *libcs;

	if (!next) {
		next = library_next("poll");
		libcs = dlsym(dlopen("libc.so.6", RTLD_LAZY), "poll");
	}
	polls++;
	return (polls & 1 ? next : libcs)(fds, count, timeout);
}
