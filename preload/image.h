/* SPDX-License-Identifier: MIT */
/*
 * image.h - functions of a loaded ELF image by name, without the dynamic linker's help.
 *
 * dlsym() may call malloc(), malloc() may be a program's own and read the clock, and the clock may
 * be what is being looked for; or dlsym() itself.
 */
#ifndef TIMESHIM_IMAGE_H
#define TIMESHIM_IMAGE_H

#include <elf.h>
#include <stdbool.h>
#include <stddef.h>

struct image {
	const char *base;
	const char *bias; /* base, had it been linked to address 0 */
	size_t size; /* of what is loaded first, in whole pages */
	const Elf64_Sym *symbols;
	const char *names;
	size_t count; /* of symbols */
};

/* Of the image whose ELF header is at base; false if there is none. */
bool image_parse(struct image *image, const char *base);

static inline bool is_function(const Elf64_Sym *symbol)
{
	return symbol->st_shndx != SHN_UNDEF && ELF64_ST_TYPE(symbol->st_info) == STT_FUNC;
}

/* NULL if it has none of that name. */
void *image_function(const struct image *image, const char *name);

#endif
