// SPDX-License-Identifier: MIT
/* plugin.c - a library that reads the TSC in its constructor, and when asked to. */
#include <stdint.h>
#include <x86intrin.h>

uint64_t seen_by_constructor;

uint64_t plugin_read(void)
{
	return __rdtsc();
}

static void __attribute__((constructor)) construct(void)
{
	seen_by_constructor = __rdtsc();
}
