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

#define VDSO_SPAN 4096ull /* its code is some pages, and each function in them is looked at */

/* A kernel booted with vdso=0 still has the system call. */
int kernel_clock_gettime(clockid_t id, struct timespec *ts)
{
	return (int)kernel_call(SYS_clock_gettime, (const long[6]){ id, (long)ts });
}

static bool is_clock_gettime(const struct image *image, const Elf64_Sym *symbol)
{
	const char *name = image->names + symbol->st_name;

	return !strcmp(name, "__vdso_clock_gettime") || !strcmp(name, "clock_gettime");
}

static struct image vdso; /* of size 0 if there is none */

clock_gettime_fn *vdso_clock_gettime(void)
{
	if (!image_parse(&vdso, (const char *)getauxval(AT_SYSINFO_EHDR)))
		return kernel_clock_gettime;
	for (size_t i = 0; i < vdso.count; i++) {
		const Elf64_Sym *symbol = &vdso.symbols[i];

		if (is_function(symbol) && is_clock_gettime(&vdso, symbol))
			return (clock_gettime_fn *)(uintptr_t)(vdso.bias + symbol->st_value);
	}
	return kernel_clock_gettime;
}

/* Where CRIU's jump leads that may stand at the beginning of a function; 0 if there is none. */
static uint64_t destination(const uint8_t *function)
{
	static const uint8_t load_rax[] = { 0x48, 0xb8 }, jump_rax[] = { 0xff, 0xe0 };
	uint64_t target;

	if (memcmp(function, load_rax, sizeof(load_rax)) ||
	    memcmp(function + sizeof(load_rax) + sizeof(target), jump_rax, sizeof(jump_rax)))
		return 0;
	memcpy(&target, function + sizeof(load_rax), sizeof(target));
	return target;
}

bool in_vdso(uint64_t address)
{
	if (!vdso.size)
		return false;
	if (address - (uint64_t)vdso.base < vdso.size)
		return true;
	for (size_t i = 0; i < vdso.count; i++) {
		uint64_t target;

		if (!is_function(&vdso.symbols[i]))
			continue;
		target = destination((const uint8_t *)(vdso.bias + vdso.symbols[i].st_value));
		if (target && address - (target & -VDSO_SPAN) < 2 * VDSO_SPAN)
			return true;
	}
	return false;
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
