/* SPDX-License-Identifier: MIT */
/*
 * sites.h - where an ELF object reads the TSC, and what can be done about it.
 *
 * The one place that decides: the shim asks it about what the dynamic linker has loaded, and
 * `timeshim scan`, by way of cffi, about files.  Addresses are link-time addresses.  Objects are
 * looked at before or after they are relocated, and trusted in nothing.
 */
#ifndef TIMESHIM_SITES_H
#define TIMESHIM_SITES_H

#include <stddef.h>
#include <stdint.h>

#define TS_RDTSC 0 /* ts_site.kind */
#define TS_RDTSCP 1

#define TS_SITE_MOVED                                                                              \
	0 /* ts_site.how: a jump over it and instructions beside it, which move along */
#define TS_SITE_HOP 1 /* a short jump to a jump in padding nearby */
#define TS_SITE_PUNNED 2 /* a jump whose distance ends in the instruction that follows */
#define TS_SITE_RAW 3 /* nothing: it reads the hardware */

struct ts_site {
	uint64_t address;
	uint64_t function; /* beginning of the one it lies in */
	uint64_t window; /* first of the bytes that are replaced */
	uint64_t padding; /* where the second jump of a hop lies */
	uint32_t length; /* of the window; two sites may share one */
	uint8_t kind;
	uint8_t how;
	uint8_t reserved[2];
};

/* A loaded object, or a file that is mapped as if it were. */
struct ts_object {
	uint64_t bias; /* what to add to link-time addresses */
	uint64_t phdr; /* address of the program headers, here */
	uint32_t phnum;
	uint32_t left_alone; /* by ts_open_object(): one of TS_ALONE_... */
	uint64_t low, high; /* by ts_open_object(): link-time addresses of what is loaded */
	uint64_t dynamic; /* by ts_open_object(): where it is, 0 if there is none */
};

#define TS_ALONE_NOT 0
#define TS_ALONE_LIBC                                                                              \
	1 /* libc and the dynamic linker: jitter for spin locks, LD_DEBUG=statistics */
#define TS_ALONE_KERNEL 2 /* the vDSO: the kernel's clocks, which the shim reads */
#define TS_ALONE_SHIM 3
#define TS_ALONE_TEXTREL 4 /* the dynamic linker writes into its text */

/* What became of the byte sequences that look like the instructions. */
struct ts_scan {
	uint64_t text; /* bytes looked at */
	uint32_t sites; /* true ones */
	uint32_t outside; /* in no function: data */
	uint32_t inside; /* part of another instruction, or nothing leads there: data */
	uint32_t undecoded; /* in a function that contains something else than instructions */
	uint32_t marked; /* timeshim.h's, which looks at the page itself */
	uint32_t moved, hops, punned, raw; /* of the sites */
};

/* Fills in the rest of an object whose bias, phdr and phnum are given; false if it is not sound. */
_Bool ts_open_object(struct ts_object *object);

/*
 * Finds the sites of an object, in order of address.  Returns how many it has, at most room; if
 * that is too little, more than room, as many as would surely be enough; or -errno.
 */
long ts_find_sites(const struct ts_object *object, struct ts_site *sites, size_t room,
		   struct ts_scan *scan);

#endif
