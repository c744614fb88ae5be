// SPDX-License-Identifier: MIT
/*
 * vdso.c - finds the kernel's clock_gettime in the vDSO, and hides it from others.  See vdso(7).
 *
 * CRIU puts the new kernel's vDSO at the old address, or leaves jumps to it there
 * (criu/pie/parasite-vdso.c), so the address found once stays good after a migration.
 *
 * Language runtimes parse the vDSO as well (Go's runtime/vdso_linux.go, Rust's rustix) and would
 * read the kernel's clock there.  They are shown a copy in which clock_gettime is the shim's and
 * all else is where it was.
 */
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "image.h"
#include "shim.h"

/* A kernel booted with vdso=0 still has the system call. */
static int syscall_clock_gettime(clockid_t id, struct timespec *ts)
{
	return (int)kernel_call(SYS_clock_gettime, (const long[6]){ id, (long)ts });
}

static bool is_clock_gettime(const struct image *image, const Elf64_Sym *symbol)
{
	const char *name = image->names + symbol->st_name;

	return !strcmp(name, "__vdso_clock_gettime") || !strcmp(name, "clock_gettime");
}

clock_gettime_fn *vdso_clock_gettime(void)
{
	struct image image;

	if (!image_parse(&image, (const char *)getauxval(AT_SYSINFO_EHDR)))
		return syscall_clock_gettime;
	for (size_t i = 0; i < image.count; i++) {
		const Elf64_Sym *symbol = &image.symbols[i];

		if (is_function(symbol) && is_clock_gettime(&image, symbol))
			return (clock_gettime_fn *)(uintptr_t)(image.bias + symbol->st_value);
	}
	return syscall_clock_gettime;
}

/*
 * The copy is not executable, and only its symbols are changed: functions in it are elsewhere.
 * CRIU takes what is executable and looks like a vDSO for one, and replaces it.
 */
int hide_vdso(Elf64_auxv_t *auxv)
{
	struct image image;
	ptrdiff_t moved;
	char *copy;

	while (auxv->a_type != AT_NULL && auxv->a_type != AT_SYSINFO_EHDR)
		auxv++;
	if (auxv->a_type == AT_NULL || !image_parse(&image, (const char *)auxv->a_un.a_val))
		return 0;

	/* Below what its symbols point to: not everybody adds addresses modulo 2^64. */
	copy = mmap((void *)((uintptr_t)&shim - (1 << 30)), image.size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED)
		return errno;
	memcpy(copy, image.base, image.size);
	moved = copy - image.base;
	for (size_t i = 0; i < image.count; i++) {
		Elf64_Sym *symbol = (Elf64_Sym *)((char *)&image.symbols[i] + moved);
		const char *target = image.bias + symbol->st_value;

		if (!is_function(symbol))
			continue;
		if (is_clock_gettime(&image, symbol))
			target = (const char *)(uintptr_t)virtual_clock;
		symbol->st_value = target - (image.bias + moved);
	}
	mprotect(copy, image.size, PROT_READ);
	auxv->a_un.a_val = (uint64_t)copy;
	return 0;
}
