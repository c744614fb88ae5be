// SPDX-License-Identifier: MIT
/*
 * image.c - see image.h.  What is relied on is what the kernel's tools/testing/selftests/vDSO
 * relies on, and what the dynamic linker makes of it.
 */
#include <stdint.h>
#include <string.h>

#include "image.h"

bool image_parse(struct image *image, const char *base)
{
	const Elf64_Ehdr *ehdr = (const void *)base;
	const Elf64_Phdr *phdr;
	const Elf64_Dyn *dyn = NULL;
	const Elf64_Word *hash = NULL;

	*image = (struct image){ .base = base };
	if (!base)
		return false;

	phdr = (const void *)(base + ehdr->e_phoff);
	for (int i = 0; i < ehdr->e_phnum; i++) {
		if (phdr[i].p_type == PT_LOAD && !image->bias) {
			image->bias = base + phdr[i].p_offset - phdr[i].p_vaddr;
			image->size = (phdr[i].p_offset + phdr[i].p_memsz + 4095) & -4096;
		} else if (phdr[i].p_type == PT_DYNAMIC) {
			/* behind the first segment, the address says where it is and not the offset
			 */
			dyn = (const void *)(image->bias + phdr[i].p_vaddr);
		}
	}
	if (!image->bias || !dyn)
		return false;

	for (; dyn->d_tag != DT_NULL; dyn++) {
		/* the dynamic linker has relocated its own libraries', the vDSO's are as they were
		 */
		const void *at = dyn->d_un.d_ptr < (uintptr_t)image->bias
					 ? image->bias + dyn->d_un.d_ptr
					 : (const char *)(uintptr_t)dyn->d_un.d_ptr;

		if (dyn->d_tag == DT_SYMTAB)
			image->symbols = at;
		else if (dyn->d_tag == DT_STRTAB)
			image->names = at;
		else if (dyn->d_tag == DT_HASH)
			hash = at;
	}
	if (!image->symbols || !image->names)
		return false;

	/*
	 * DT_HASH counts the symbols, but there may be DT_GNU_HASH alone (kernels since 6.x,
	 * linkers by default); the string table follows the symbol table, which bounds it as well.
	 */
	image->count = hash ? hash[1]
			    : (size_t)(image->names - (const char *)image->symbols) /
				       sizeof(*image->symbols);
	return true;
}

void *image_function(const struct image *image, const char *name)
{
	for (size_t i = 0; i < image->count; i++) {
		const Elf64_Sym *symbol = &image->symbols[i];

		if (is_function(symbol) && !strcmp(image->names + symbol->st_name, name))
			return (void *)(uintptr_t)(image->bias + symbol->st_value);
	}
	return NULL;
}
