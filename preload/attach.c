// SPDX-License-Identifier: MIT
/*
 * attach.c - what happens before main(): finds the page, maps it, and finds the
 * functions that the shim stands in front of.
 *
 * The page lies beside the library itself, in the directory that `timeshim run` made
 * for the task, so no environment variable has to survive for it to be found.  Whatever
 * is wrong ends the process here: a program whose clocks are half virtual is worse off
 * than one that did not start.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "slot.h"
#include "trap.h"
#include "tsc.h"

#define EXIT_CANNOT_ATTACH 126 /* as shells say "found but could not be executed" */

struct shim shim;

/* by the linker, around all that NEXT() put there */
extern const struct next_symbol __start_next_symbols[], __stop_next_symbols[];

static void __attribute__((noreturn)) refuse(const char *what, const char *why)
{
	const char *part[] = { "timeshim: ",
			       (const char *)getauxval(AT_EXECFN),
			       " was not started: ",
			       what,
			       ": ",
			       why,
			       "\n" };
	struct iovec iov[sizeof(part) / sizeof(part[0])];

	for (size_t i = 0; i < sizeof(part) / sizeof(part[0]); i++)
		iov[i] = (struct iovec){ (char *)part[i], strlen(part[i]) };
	/* writev() is the shim's own, which is not ready */
	kernel_call(SYS_writev,
		    (const long[6]){ STDERR_FILENO, (long)iov, sizeof(part) / sizeof(part[0]) });
	_exit(EXIT_CANNOT_ATTACH);
}

static void find_library(void)
{
	Dl_info self;

	if (!dladdr(&shim, &self) || !strchr(self.dli_fname, '/'))
		refuse("libtimeshim.so", "loaded by a relative name; use `timeshim run`");
	if (strlen(self.dli_fname) >= sizeof(shim.library))
		refuse(self.dli_fname, strerror(ENAMETOOLONG));
	strcpy(shim.library, self.dli_fname);
}

static void page_path(char *path, size_t size)
{
	size_t directory = strrchr(shim.library, '/') - shim.library;

	if (directory + sizeof("/page") > size)
		refuse(shim.library, strerror(ENAMETOOLONG));
	memcpy(path, shim.library, directory);
	strcpy(path + directory, "/page");
}

static void *map(const char *path, int flags, int prot, size_t size, off_t offset)
{
	int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK); /* nobody hangs on a FIFO */
	void *area;
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		refuse(path, strerror(errno));
	/* beyond the end of a file, a mapping only waits to raise SIGBUS */
	if (st.st_size != TS_PAGE_SIZE)
		refuse(path, "not a page of this shim (its size is wrong)");
	area = mmap(NULL, size, prot, MAP_SHARED, fd, offset);
	if (area == MAP_FAILED)
		refuse(path, strerror(errno));
	close(fd);
	return area;
}

/*
 * pthread_cond_timedwait() is not told which clock it waits on.  glibc keeps that in a bit of
 * __wrefs (nptl/pthread_cond_init.c), which lies elsewhere since 2.41; rather than trust a version
 * number, look where two that differ in their clock differ.
 */
static void find_cond_clock(void)
{
	enum { WORDS = sizeof(pthread_cond_t) / sizeof(uint32_t) };
	union {
		pthread_cond_t cond;
		uint32_t word[WORDS];
	} real = { .word = { 0 } }, monotonic = real;
	pthread_condattr_t attr;
	size_t differ = 0;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&monotonic.cond, &attr);
	pthread_cond_init(&real.cond, NULL);
	for (size_t i = 0; i < WORDS; i++) {
		if (real.word[i] == monotonic.word[i])
			continue;
		differ++;
		shim.cond_word = i;
		shim.cond_monotonic = real.word[i] ^ monotonic.word[i];
	}
	if (differ != 1 || __builtin_popcount(shim.cond_monotonic) != 1 ||
	    cond_clock(&monotonic.cond) != CLOCK_MONOTONIC)
		refuse("pthread_cond_t", "this libc keeps its clock in an unknown place");
}

void attach(void)
{
	const struct ts_clock_area *clocks;
	char path[PATH_MAX];

	if (shim.clocks)
		return;

	shim.kernel_clock = vdso_clock_gettime();

	find_library();
	page_path(path, sizeof(path));
	clocks = map(path, O_RDONLY, PROT_READ, sizeof(*clocks), 0);
	if (clocks->magic != TIMESHIM_MAGIC)
		refuse(path, "not a page");
	if (clocks->abi != TIMESHIM_ABI || clocks->size != TS_PAGE_SIZE)
		refuse(path, "a page of another timeshim version");
	shim.task = map(path, O_RDWR, PROT_READ | PROT_WRITE, sizeof(*shim.task), TS_TASK_AREA);

	shim.cpu = map(path, O_RDWR, PROT_READ | PROT_WRITE, sizeof(*shim.cpu), TS_CPU_AREA);
	shim.signals = map(path, O_RDONLY, PROT_READ, sizeof(*shim.signals), TS_SIGNAL_AREA);

	if (!find_dlsym())
		refuse("dlsym", "this libc keeps it in an unknown place");

	/*
	 * Before looking for others: should that call a malloc() that reads the clock, that read
	 * must find the shim attached instead of coming here again.
	 */
	__atomic_store_n(&shim.clocks, clocks, __ATOMIC_RELEASE);

	for (const struct next_symbol *next = __start_next_symbols; next < __stop_next_symbols;
	     next++)
		*next->address = find_next(next->name);
	find_cond_clock();
}

static void __attribute__((constructor)) attach_at_load(int argc, char **argv, char **envp)
{
	int err;

	(void)argc, (void)argv;
	attach();
	/* the auxiliary vector lies behind the environment, and getauxval() reads it there as well
	 */
	while (*envp)
		envp++;
	if ((err = hide_vdso((Elf64_auxv_t *)(envp + 1))))
		refuse("a copy of the vDSO", strerror(err));
	begin_trap();
	cpu_begin();
	rewrite_tsc();
	__atomic_fetch_add(&shim.task->attached, 1, __ATOMIC_RELAXED);
}
