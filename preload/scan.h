/* SPDX-License-Identifier: MIT */
/*
 * scan.h - files that are mapped as the dynamic linker would, to be looked at by sites.c.
 *
 * For Python, by way of cffi; never linked into the shim.
 */
#ifndef TIMESHIM_SCAN_H
#define TIMESHIM_SCAN_H

#include "sites.h"

/* Maps an x86-64 ELF program or library.  0, or a negative errno: -ENOEXEC if it is none. */
int ts_map_file(int fd, struct ts_object *object);
void ts_unmap_file(struct ts_object *object);

#endif
