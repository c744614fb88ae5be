// SPDX-License-Identifier: MIT
/*
 * vdso.c - calls the vDSO directly, as language runtimes do, and compares it with libc.
 *
 *     vdso stack | getauxval      where to look for AT_SYSINFO_EHDR
 *
 * Until SIGTERM; then prints a JSON object: for how many readings the vDSO's CLOCK_MONOTONIC was
 * not between two of libc's (or its other functions were wrong), and how many there were.
 */
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/time.h>
#include <time.h>

static volatile sig_atomic_t enough;

static void stop(int signal)
{
	enough = signal;
}

static uintptr_t on_stack(char **envp)
{
	Elf64_auxv_t *auxv;

	while (*envp)
		envp++;
	for (auxv = (Elf64_auxv_t *)(envp + 1); auxv->a_type != AT_NULL; auxv++) {
		if (auxv->a_type == AT_SYSINFO_EHDR)
			return auxv->a_un.a_val;
	}
	return 0;
}

/* After the kernel's tools/testing/selftests/vDSO/parse_vdso.c, by the SysV hash table. */
static void *look_up(uintptr_t base, const char *name)
{
	const Elf64_Ehdr *ehdr = (void *)base;
	const Elf64_Phdr *phdr = (void *)(base + ehdr->e_phoff);
	const Elf64_Word *hash = NULL, *bucket, *chain;
	const Elf64_Dyn *dyn = NULL;
	const Elf64_Sym *symtab = NULL;
	const char *strtab = NULL;
	uintptr_t bias = 0, h = 0;

	for (int i = 0; i < ehdr->e_phnum; i++) {
		if (phdr[i].p_type == PT_LOAD)
			bias = base + phdr[i].p_offset - phdr[i].p_vaddr;
		else if (phdr[i].p_type == PT_DYNAMIC)
			dyn = (void *)(base + phdr[i].p_offset);
	}
	for (; dyn->d_tag != DT_NULL; dyn++) {
		void *at = (void *)(bias + dyn->d_un.d_ptr);

		if (dyn->d_tag == DT_HASH)
			hash = at;
		else if (dyn->d_tag == DT_SYMTAB)
			symtab = at;
		else if (dyn->d_tag == DT_STRTAB)
			strtab = at;
	}
	for (const char *c = name; *c; c++) {
		h = (h << 4) + *c;
		h = (h ^ (h >> 24 & 0xf0)) & 0xfffffff;
	}
	bucket = hash + 2;
	chain = bucket + hash[0];
	for (Elf64_Word i = bucket[h % hash[0]]; i; i = chain[i]) {
		if (!strcmp(strtab + symtab[i].st_name, name))
			return (void *)(bias + symtab[i].st_value);
	}
	return NULL;
}

static int64_t libc_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int main(int argc, char **argv, char **envp)
{
	uintptr_t base =
		argc > 1 && !strcmp(argv[1], "stack") ? on_stack(envp) : getauxval(AT_SYSINFO_EHDR);
	int (*clock)(clockid_t, struct timespec *) = look_up(base, "__vdso_clock_gettime");
	int (*alias)(clockid_t, struct timespec *) = look_up(base, "clock_gettime");
	int (*resolution)(clockid_t, struct timespec *) = look_up(base, "__vdso_clock_getres");
	int (*day)(struct timeval *, void *) = look_up(base, "__vdso_gettimeofday");
	time_t (*seconds)(time_t *) = look_up(base, "__vdso_time");
	long (*cpu)(unsigned int *, unsigned int *, void *) = look_up(base, "__vdso_getcpu");
	long wrong = 0, readings = 0;

	signal(SIGTERM, stop);
	for (; !enough; readings++) {
		int64_t before = libc_ns(), now;
		struct timespec ts;
		struct timeval tv;
		unsigned int number;
		time_t today;

		wrong += clock(CLOCK_MONOTONIC, &ts) != 0;
		now = ts.tv_sec * 1000000000 + ts.tv_nsec;
		wrong += now < before || now > libc_ns();
		wrong += alias(CLOCK_MONOTONIC, &ts) != 0;
		wrong += ts.tv_sec * 1000000000 + ts.tv_nsec < now;
		wrong += clock(1000, &ts) != -EINVAL;
		wrong += resolution(CLOCK_MONOTONIC, &ts) || ts.tv_nsec != 1;
		today = time(NULL);
		wrong += day(&tv, NULL) || tv.tv_sec < today || tv.tv_sec > today + 60;
		wrong += seconds(NULL) < today;
		wrong += cpu(&number, NULL, NULL) != 0;
	}
	printf("{\"wrong\": %ld, \"readings\": %ld}\n", wrong, readings);
	return 0;
}
