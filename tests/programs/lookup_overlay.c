// SPDX-License-Identifier: MIT
/*
 * lookup_overlay.c - a library to be preloaded that stands in front of dlsym(), as game overlays
 * do.
 */
#include <dlfcn.h>
#include <stddef.h>

static long calls;

long overlay_calls(void);

long overlay_calls(void)
{
	return calls;
}

void *dlsym(void *handle, const char *name)
{
	static __typeof__(dlsym) *next;

	if (!next)
		next = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
	calls++;
	return next(handle, name);
}
