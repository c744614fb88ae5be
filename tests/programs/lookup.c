// SPDX-License-Identifier: MIT
/*
 * lookup.c - looks for libc's functions in every way that there is.
 *
 * Prints, as a JSON object, by how many seconds CLOCK_MONOTONIC differs from the kernel's if read
 * by the function that was found; and, under names that begin with "=", what must be as natively.
 * Linked with lookup_library.c, and perhaps preloaded with lookup_overlay.c.
 */
#include <dlfcn.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

typedef int clock_gettime_fn(clockid_t, struct timespec *);

void *library_next(const char *name);
void *library_next_version(const char *name, const char *version);
void *library_default(const char *name);
long library_polls(void);

__attribute__((weak)) long overlay_calls(void);

static void show(const char *way, void *function)
{
	struct timespec now = { -1, 0 }, kernel;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(SYS_clock_gettime), "D"(CLOCK_MONOTONIC), "S"(&kernel)
			 : "rcx", "r11", "memory");
	if (function)
		((clock_gettime_fn *)function)(CLOCK_MONOTONIC, &now);
	printf("\"%s\": %ld, ", way, now.tv_sec - kernel.tv_sec);
}

static void must_be(const char *what, bool is)
{
	printf("\"=%s\": %s, ", what, is ? "true" : "false");
}

static bool in_libc(void *function)
{
	Dl_info info;

	return dladdr(function, &info) && strstr(info.dli_fname, "libc.so.6");
}

static bool same_library(const char *name, const char *other)
{
	Dl_info info, other_info;

	return dladdr(dlsym(RTLD_DEFAULT, name), &info) &&
	       dladdr(dlsym(RTLD_DEFAULT, other), &other_info) &&
	       info.dli_fbase == other_info.dli_fbase;
}

int main(void)
{
	void *libc = dlopen("libc.so.6", RTLD_LAZY), *program = dlopen(NULL, RTLD_LAZY), *found;
	const char *old = "GLIBC_2.2.5", *error;
	struct sysinfo kernels, raw;

	printf("{");
	show("call", clock_gettime);
	show("dlsym, libc", dlsym(libc, "clock_gettime"));
	show("dlsym, program", dlsym(program, "clock_gettime"));
	show("dlsym, RTLD_DEFAULT", dlsym(RTLD_DEFAULT, "clock_gettime"));
	show("dlsym, RTLD_NEXT", dlsym(RTLD_NEXT, "clock_gettime"));
	show("dlvsym, libc", dlvsym(libc, "clock_gettime", "GLIBC_2.17"));
	show("dlvsym, libc, old", dlvsym(libc, "clock_gettime", old));
	show("dlvsym, RTLD_DEFAULT", dlvsym(RTLD_DEFAULT, "clock_gettime", "GLIBC_2.17"));
	show("dlvsym, RTLD_NEXT", dlvsym(RTLD_NEXT, "clock_gettime", "GLIBC_2.17"));
	show("library, RTLD_NEXT", library_next("clock_gettime"));
	show("library, RTLD_NEXT, version", library_next_version("clock_gettime", "GLIBC_2.17"));
	show("library, RTLD_DEFAULT", library_default("clock_gettime"));
	found = dlsym(libc, "dlsym");
	show("dlsym by dlsym", ((__typeof__(dlsym) *)found)(libc, "clock_gettime"));

	/* another type of the same name, which the shim does not stand in front of */
	found = dlvsym(libc, "pthread_cond_timedwait", old);
	must_be("an old version is libc's", in_libc(found));
	must_be("whatever the handle",
		dlvsym(RTLD_DEFAULT, "pthread_cond_timedwait", old) == found &&
			dlvsym(RTLD_NEXT, "pthread_cond_timedwait", old) == found &&
			library_next_version("pthread_cond_timedwait", old) == found);
	must_be("and another one", found != dlvsym(libc, "pthread_cond_timedwait", "GLIBC_2.3.2"));
	must_be("what the shim does not treat is libc's", in_libc(dlsym(libc, "strlen")));

	must_be("names with underscores",
		same_library("__clock_gettime", "clock_gettime") &&
			same_library("__nanosleep", "nanosleep") &&
			same_library("__read", "read") && same_library("__send", "send") &&
			same_library("__write", "write") && same_library("__poll", "nanosleep"));

	/* it has one of its own, which calls the next one */
	poll(NULL, 0, 0);
	must_be("a library's own wrapper is in effect", library_polls() == 1);
	must_be("and found", ((__typeof__(poll) *)dlsym(RTLD_DEFAULT, "poll"))(NULL, 0, 0) == 0 &&
				     library_polls() == 2);
	must_be("and not called by libc's",
		((__typeof__(poll) *)dlsym(libc, "poll"))(NULL, 0, 0) == 0 && library_polls() == 2);

	dlerror();
	must_be("a failure is a failure", !dlsym(libc, "no_such_name") &&
						  !dlsym(RTLD_DEFAULT, "no_such_name") &&
						  !dlvsym(libc, "clock_gettime", "GLIBC_1.0"));
	error = dlerror();
	must_be("with its message", error && strstr(error, "undefined symbol: clock_gettime, "
							   "version GLIBC_1.0"));
	must_be("once", !dlerror());
	dlsym(libc, "no_such_name");
	dlsym(libc, "clock_gettime");
	must_be("until the next one", !dlerror());

	syscall(SYS_sysinfo, &raw);
	sysinfo(&kernels);
	must_be("syscall()", raw.uptime - kernels.uptime <= 1 && kernels.uptime - raw.uptime <= 1);
	printf("\"=overlay\": %s}\n", !overlay_calls || overlay_calls() > 10 ? "true" : "false");
	return 0;
}
