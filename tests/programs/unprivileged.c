// SPDX-License-Identifier: MIT
/*
 * unprivileged.c - a library that makes a program believe it is not root's; UID says whose.
 *
 * PostgreSQL refuses to run as root. CRIU can only dump another user's processes with
 * CAP_SYS_RESOURCE (it asks for their limits, prlimit(2)), which root lacks in many containers.
 */
#include <unistd.h>

uid_t getuid(void)
{
	return UID;
}

uid_t geteuid(void)
{
	return UID;
}
