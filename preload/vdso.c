// SPDX-License-Identifier: MIT
/*
 * vdso.c - finds the kernel's clock_gettime in the vDSO.
 *
 * The dynamic linker could be asked by name, but dlsym() may call malloc(), malloc()
 * may be a program's own and read the clock, and the clock is what is being looked for.
 * The auxiliary vector and forty lines of ELF depend on nothing.  See vdso(7); the
 * layout that is relied on is the one of the kernel's tools/testing/selftests/vDSO.
 *
 * CRIU puts the new kernel's vDSO at the old address, or leaves jumps to it there
 * (criu/pie/parasite-vdso.c), so the address found once stays good after a migration.
 */
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>

#include "shim.h"

/* A kernel booted with vdso=0 still has the system call. */
static int syscall_clock_gettime(clockid_t id, struct timespec *ts)
{
	return (int)kernel_call(SYS_clock_gettime, (const long[6]){ id, (long)ts });
}

clock_gettime_fn *vdso_clock_gettime(void)
{
	const char *base = (const char *)getauxval(AT_SYSINFO_EHDR);
	const Elf64_Ehdr *ehdr = (const void *)base;
	const Elf64_Phdr *phdr;
	const Elf64_Dyn *dyn = NULL;
	const Elf64_Sym *symtab = NULL;
	const Elf64_Word *hash = NULL;
	const char *strtab = NULL, *bias = NULL;

	if (!base)
		return syscall_clock_gettime;

	phdr = (const void *)(base + ehdr->e_phoff);
	for (int i = 0; i < ehdr->e_phnum; i++) {
		if (phdr[i].p_type == PT_LOAD && !bias)
			bias = base + phdr[i].p_offset - phdr[i].p_vaddr;
		else if (phdr[i].p_type == PT_DYNAMIC)
			dyn = (const void *)(base + phdr[i].p_offset);
	}
	if (!bias || !dyn)
		return syscall_clock_gettime;

	for (; dyn->d_tag != DT_NULL; dyn++) {
		const void *at = bias + dyn->d_un.d_ptr;

		if (dyn->d_tag == DT_SYMTAB)
			symtab = at;
		else if (dyn->d_tag == DT_STRTAB)
			strtab = at;
		else if (dyn->d_tag == DT_HASH)
			hash = at;
	}
	if (!symtab || !strtab)
		return syscall_clock_gettime;

	/*
	 * DT_HASH counts the symbols, but kernels since 6.x may carry DT_GNU_HASH alone;
	 * the string table always follows the symbol table there, which bounds it as well.
	 */
	size_t count = hash ? hash[1] : (size_t)(strtab - (const char *)symtab) / sizeof(*symtab);

	for (size_t i = 0; i < count; i++) {
		const Elf64_Sym *sym = &symtab[i];

		if (sym->st_shndx != SHN_UNDEF && ELF64_ST_TYPE(sym->st_info) == STT_FUNC &&
		    !strcmp(strtab + sym->st_name, "__vdso_clock_gettime"))
			return (clock_gettime_fn *)(uintptr_t)(bias + sym->st_value);
	}
	return syscall_clock_gettime;
}
