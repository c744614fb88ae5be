// SPDX-License-Identifier: MIT
/*
 * loader.c - a dynamic loader (PT_INTERP) that loads nothing, no preload either, and waits.
 */
#include <sys/syscall.h>

void _start(void)
{
	for (;;) {
		long ret = SYS_pause;

		__asm__ volatile("syscall" : "+a"(ret) : : "rcx", "r11", "memory");
	}
}
