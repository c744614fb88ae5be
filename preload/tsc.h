/* SPDX-License-Identifier: MIT */
/*
 * tsc.h - what rewriting the instructions that read the TSC is made of.
 */
#ifndef TIMESHIM_TSC_H
#define TIMESHIM_TSC_H

#include <stdbool.h>

#include "sites.h"

#define TRAMPOLINE_SIZE 256 /* no trampoline for one site, with what moves along, is larger */

/* tsc.c: rewrites what is loaded, and has the dynamic linker tell of what will be. */
void rewrite_tsc(void);

/* tsc.c: called by tell_of_objects in place of the dynamic linker's _dl_debug_state(). */
void objects_changed(void);

/* trampoline.c: objects_changed() for a caller that expects no register to change. */
void tell_of_objects(void);

/*
 * trampoline.c: writes the code that stands in for a site's window to where it will run.  Returns
 * its size, or 0 if something that it refers to is too far away.
 */
size_t write_trampoline(uint8_t *to, const struct ts_object *object, const struct ts_site *site,
			const void *page);

/* trampoline.c: jmp rel32; false if it is too far. */
bool write_jump(uint8_t *to, uint64_t from, uint64_t target);

#endif
