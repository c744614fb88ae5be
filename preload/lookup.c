// SPDX-License-Identifier: MIT
/*
 * lookup.c - dlsym() and dlvsym(), by which programs find libc's functions past the shim.
 *
 * Python's ctypes, LuaJIT and JNA look for them behind a handle of libc.so.6, and libraries with
 * RTLD_NEXT.  Whoever would be given what the shim stands in front of is given the shim's own;
 * every other answer stays the dynamic linker's.  That judges RTLD_NEXT and RTLD_DEFAULT by the
 * address to which it will return; so it is not called but jumped to, as if there were no shim.
 */
#include <dlfcn.h>
#include <link.h>
#include <string.h>

#include "image.h"
#include "shim.h"

NEXT(dlsym);
NEXT(dlvsym);

/* libc's, which take the shim for whoever calls them. */
static __typeof__(dlsym) *libc_dlsym;
static __typeof__(dlvsym) *libc_dlvsym;

extern const char __ehdr_start[] __attribute__((visibility("hidden"))); /* the shim's own */

static int find_in(struct dl_phdr_info *info, size_t size, void *unused)
{
	const char *name = strrchr(info->dlpi_name, '/');
	struct image image;

	(void)size, (void)unused;
	/* both are in libdl.so.2 before glibc 2.34 */
	if (!name || (strcmp(name, "/libc.so.6") && strcmp(name, "/libdl.so.2")) ||
	    !image_parse(&image, (const char *)info->dlpi_addr))
		return 0;
	libc_dlsym = image_function(&image, "dlsym");
	libc_dlvsym = image_function(&image, "dlvsym");
	return libc_dlsym && libc_dlvsym;
}

bool find_dlsym(void)
{
	if (!dl_iterate_phdr(find_in, NULL))
		return false;
	/* until find_next() has found whoever else stands in front of them */
	next_dlsym = libc_dlsym;
	next_dlvsym = libc_dlvsym;
	return true;
}

void *find_next(const char *name)
{
	return libc_dlsym(RTLD_NEXT, name);
}

static void *own_function(const char *name)
{
	struct image self;

	return image_parse(&self, __ehdr_start) ? image_function(&self, name) : NULL;
}

/* Does the library that an address belongs to come before the shim wherever symbols are looked up?
 */
static bool precedes(const void *address)
{
	struct link_map *library, *shims;
	Dl_info info;

	if (!dladdr1(address, &info, (void **)&library, RTLD_DL_LINKMAP) ||
	    !dladdr1(&shim, &info, (void **)&shims, RTLD_DL_LINKMAP))
		return false;
	while (shims && shims != library)
		shims = shims->l_prev;
	return shims;
}

static bool in_libc(const void *address)
{
	static const char *const part[] = { "/libc.so.", "/libpthread.so.", "/librt.so.",
					    "/libdl.so." };
	const char *name;
	Dl_info info;

	if (!dladdr(address, &info) || !(name = strrchr(info.dli_fname, '/')))
		return false;
	for (size_t i = 0; i < sizeof(part) / sizeof(part[0]); i++)
		if (!strncmp(name, part[i], strlen(part[i])))
			return true;
	return false;
}

/* What to say instead of what the dynamic linker would; NULL if that is right. */
static void *answer(void *handle, const char *name, const char *version, const void *caller)
{
	void *own = own_function(name), *behind, *found;

	if (!own || !(behind = libc_dlsym(RTLD_NEXT, name)))
		return NULL;

	if (handle == RTLD_NEXT) {
		/* one of an old version may be another one, which the shim does not stand in front
		 * of */
		found = version ? libc_dlvsym(RTLD_NEXT, name, version) : behind;
		if (found != behind)
			return NULL;
		/* with a version the shim, which has none, is never found */
		if (precedes(caller))
			return version ? own : NULL;
		/* another library's wrapper behind the shim is called by it, and must not call it
		 */
		return in_libc(behind) ? own : NULL;
	}

	/* last, so that what dlerror() says is about it */
	found = version ? next_dlvsym(handle, name, version) : next_dlsym(handle, name);
	return found == behind ? own : NULL;
}

/* In two registers: what to return or, if that is NULL, where to go on. */
struct outcome {
	void *answer, *otherwise;
};

__attribute__((used, visibility("hidden"))) struct outcome
lookup(void *handle, const char *name, const char *version, const void *caller)
{
	/* no more than that: attach() may call another preload, which may look for what it wraps */
	if (unlikely(!next_dlsym) && !find_dlsym())
		attach();
	return (struct outcome){ answer(handle, name, version, caller),
				 version ? (void *)next_dlvsym : (void *)next_dlsym };
}

__asm__(".text\n"
	".globl dlsym, dlvsym\n"
	".type dlsym, @function\n"
	".type dlvsym, @function\n"
	".cfi_startproc\n"
	"dlsym:\n"
	"	xorl %edx, %edx\n" /* no version */
	"dlvsym:\n"
	"	pushq %rdi\n"
	"	.cfi_adjust_cfa_offset 8\n"
	"	pushq %rsi\n"
	"	.cfi_adjust_cfa_offset 8\n"
	"	pushq %rdx\n"
	"	.cfi_adjust_cfa_offset 8\n"
	"	movq 24(%rsp), %rcx\n" /* the caller */
	"	call lookup\n"
	"	movq %rdx, %r11\n"
	"	popq %rdx\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	popq %rsi\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	popq %rdi\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	testq %rax, %rax\n"
	"	jne 1f\n"
	"	jmp *%r11\n"
	"1:	ret\n"
	".cfi_endproc\n"
	".size dlsym, . - dlsym\n"
	".size dlvsym, . - dlvsym\n");
