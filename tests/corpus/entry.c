// SPDX-License-Identifier: MIT
/*
 * entry.c - ways to CLOCK_MONOTONIC: by other symbols, and in places where little works.
 */
#include <dlfcn.h>
#include <elf.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "beats.h"

typedef int clock_fn(clockid_t, struct timespec *);

static int64_t call(clock_fn *function, clockid_t clock)
{
	struct timespec ts;

	return function && !function(clock, &ts) ? to_ns(ts) : ABSENT;
}

/* Symbols -------------------------------------------------------------------------------------- */

static int64_t by_rtld_next(clockid_t clock)
{
	return call((clock_fn *)dlsym(RTLD_NEXT, "clock_gettime"), clock);
}

static int64_t by_rtld_default(clockid_t clock)
{
	return call((clock_fn *)dlsym(RTLD_DEFAULT, "clock_gettime"), clock);
}

static void *libc;

static int64_t by_handle(clockid_t clock)
{
	return call((clock_fn *)dlsym(libc, "clock_gettime"), clock);
}

static int64_t by_version(clockid_t clock)
{
	return call((clock_fn *)dlvsym(libc, "clock_gettime", "GLIBC_2.17"), clock);
}

static int64_t by_next_version(clockid_t clock)
{
	return call((clock_fn *)dlvsym(RTLD_NEXT, "clock_gettime", "GLIBC_2.17"), clock);
}

/* The vDSO, as language runtimes call it ------------------------------------------------------- */

static uintptr_t auxv_on_stack(void)
{
	char **envp = environ;
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

static clock_fn *on_stack, *from_getauxval, *alias, *getres;
static int (*day)(struct timeval *, void *);
static time_t (*seconds)(time_t *);
static long (*cpu)(unsigned int *, unsigned int *, void *);

static int64_t by_vdso_on_stack(clockid_t clock)
{
	return call(on_stack, clock);
}

static int64_t by_vdso_from_getauxval(clockid_t clock)
{
	return call(from_getauxval, clock);
}

static int64_t by_vdso_alias(clockid_t clock)
{
	return call(alias, clock);
}

static int rest_of_vdso(void)
{
	struct timespec ts;
	struct timeval tv;
	unsigned int number;
	time_t today = time(NULL);
	int wrong = 0;

	wrong += on_stack(1000, &ts) != -EINVAL;
	wrong += getres(CLOCK_MONOTONIC, &ts) || ts.tv_nsec != 1;
	wrong += day(&tv, NULL) || tv.tv_sec < today || tv.tv_sec > today + 60;
	wrong += seconds(NULL) < today;
	wrong += cpu(&number, NULL, NULL) != 0;
	return wrong;
}

/* Places --------------------------------------------------------------------------------------- */

static int64_t *result; /* shared with children */

static void note(int signal)
{
	(void)signal;
	*result = read_ns(CLOCK_MONOTONIC);
}

static int64_t in_handler(clockid_t clock)
{
	(void)clock;
	raise(SIGRTMIN);
	return *result;
}

static int64_t in_vfork_child(clockid_t clock)
{
	pid_t pid = vfork();

	if (!pid) {
		*result = read_ns(clock);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	return *result;
}

static int64_t in_fork_child(clockid_t clock)
{
	pid_t pid = fork();

	if (!pid) {
		*result = read_ns(clock);
		_exit(0);
	}
	waitpid(pid, NULL, 0);
	return *result;
}

static int64_t in_small_thread(void *(*start)(void *))
{
	pthread_attr_t small;
	pthread_t thread;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, PTHREAD_STACK_MIN);
	pthread_create(&thread, &small, start, NULL);
	pthread_join(thread, NULL);
	return *result;
}

static void *just_read(void *unused)
{
	*result = read_ns(CLOCK_MONOTONIC);
	return unused;
}

static int64_t on_smallest_stack(clockid_t clock)
{
	(void)clock;
	return in_small_thread(just_read);
}

static pthread_key_t key;

static void read_at_end(void *unused)
{
	(void)unused;
	*result = read_ns(CLOCK_MONOTONIC);
}

static void *leave_to_destructor(void *unused)
{
	pthread_setspecific(key, &key);
	return unused;
}

static int64_t in_key_destructor(clockid_t clock)
{
	(void)clock;
	return in_small_thread(leave_to_destructor);
}

static void *leave_to_cleanup(void *unused)
{
	pthread_cleanup_push(read_at_end, NULL);
	pthread_exit(NULL);
	pthread_cleanup_pop(0);
	return unused;
}

static int64_t in_cleanup_handler(clockid_t clock)
{
	(void)clock;
	return in_small_thread(leave_to_cleanup);
}

/* In another program, which writes what it read to its standard output. */
static int64_t in_program(char *mode)
{
	char *argv[] = { self, mode, "-", NULL };
	int64_t value = ABSENT;
	int ends[2];
	pid_t pid;

	if (pipe(ends))
		abort();
	pid = vfork();
	if (!pid) {
		dup2(ends[1], STDOUT_FILENO);
		execv(self, argv);
		_exit(1);
	}
	close(ends[1]);
	if (read(ends[0], &value, sizeof(value)) != sizeof(value))
		value = ABSENT;
	close(ends[0]);
	waitpid(pid, NULL, 0);
	return value;
}

static int64_t in_constructor(clockid_t clock)
{
	(void)clock;
	return in_program("constructor");
}

static int64_t in_atexit_handler(clockid_t clock)
{
	(void)clock;
	return in_program("atexit");
}

static void write_time(void)
{
	int64_t now = read_ns(CLOCK_MONOTONIC);

	if (write(STDOUT_FILENO, &now, sizeof(now)) != sizeof(now))
		_exit(1);
}

static void write_time_at_exit(void)
{
	write_time();
	_exit(0);
}

static void __attribute__((constructor)) be_that_program(int argc, char **argv)
{
	if (argc != 3 || strcmp(argv[2], "-"))
		return;
	if (!strcmp(argv[1], "constructor"))
		write_time();
	else
		atexit(write_time_at_exit);
	exit(0);
}

static void prepare(void)
{
	struct sigaction action = { .sa_handler = note, .sa_flags = SA_ONSTACK };
	stack_t alternate = { .ss_sp = aligned_alloc(4096, 1 << 16), .ss_size = MINSIGSTKSZ };
	uintptr_t vdso = auxv_on_stack();

	libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
	on_stack = look_up(vdso, "__vdso_clock_gettime");
	from_getauxval = look_up(getauxval(AT_SYSINFO_EHDR), "__vdso_clock_gettime");
	alias = look_up(vdso, "clock_gettime");
	getres = look_up(vdso, "__vdso_clock_getres");
	day = look_up(vdso, "__vdso_gettimeofday");
	seconds = look_up(vdso, "__vdso_time");
	cpu = look_up(vdso, "__vdso_getcpu");

	result = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sigaltstack(&alternate, NULL);
	sigaction(SIGRTMIN, &action, NULL);
	pthread_key_create(&key, read_at_end);
}

static const struct reading readings[] = {
	{ "dlsym RTLD_NEXT", CLOCK_MONOTONIC, by_rtld_next, 0, 0, false },
	{ "dlsym RTLD_DEFAULT", CLOCK_MONOTONIC, by_rtld_default, 0, 0, false },
	{ "dlsym libc.so.6", CLOCK_MONOTONIC, by_handle, 0, 0, false },
	{ "dlvsym libc.so.6", CLOCK_MONOTONIC, by_version, 0, 0, false },
	{ "dlvsym RTLD_NEXT", CLOCK_MONOTONIC, by_next_version, 0, 0, false },
	{ "vDSO by the stack", CLOCK_MONOTONIC, by_vdso_on_stack, 0, 0, false },
	{ "vDSO by getauxval", CLOCK_MONOTONIC, by_vdso_from_getauxval, 0, 0, false },
	{ "vDSO clock_gettime alias", CLOCK_MONOTONIC, by_vdso_alias, 0, 0, false },
	{ "constructor", CLOCK_MONOTONIC, in_constructor, 0, 0, true },
	{ "signal handler", CLOCK_MONOTONIC, in_handler, 0, 0, false },
	{ "vfork child", CLOCK_MONOTONIC, in_vfork_child, 0, 0, true },
	{ "fork child", CLOCK_MONOTONIC, in_fork_child, 0, 0, true },
	{ "PTHREAD_STACK_MIN", CLOCK_MONOTONIC, on_smallest_stack, 0, 0, false },
	{ "key destructor", CLOCK_MONOTONIC, in_key_destructor, 0, 0, false },
	{ "cleanup handler", CLOCK_MONOTONIC, in_cleanup_handler, 0, 0, false },
	{ "atexit handler", CLOCK_MONOTONIC, in_atexit_handler, 0, 0, true },
	{ 0 },
};

static const struct check checks[] = { { "vDSO other symbols", rest_of_vdso }, { 0 } };

const struct family entry = {
	.name = "entry",
	.prepare = prepare,
	.readings = readings,
	.checks = checks,
};
