// SPDX-License-Identifier: MIT
/*
 * tsc.c - reads the TSC as programs do, and as they do not but could, and checks what it gets.
 *
 *     tsc sites [PLUGIN]   each way once; with a library to be loaded, also in its constructor
 *     tsc spin THREADS     reads in a loop until SIGTERM; says what was wrong
 *
 * An instruction with a REX prefix is left alone by the shim, so the hardware's counter can be
 * read as well: between two readings of it there must be the one that is checked, shifted by what
 * timeshim.h says.  One JSON object a line.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "timeshim.h"

static inline uint64_t hardware(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence\n\t.byte 0x48, 0x0f, 0x31\n\tlfence" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

typedef uint64_t read_fn(void);

/* What compilers make of it. */
static __attribute__((noinline)) uint64_t plain(void)
{
	return __rdtsc();
}

static __attribute__((noinline)) uint64_t fenced(void)
{
	uint64_t ticks;

	_mm_lfence();
	ticks = __rdtsc();
	_mm_lfence();
	return ticks;
}

static __attribute__((noinline)) uint64_t with_aux(void)
{
	unsigned int aux;

	return __rdtscp(&aux);
}

static __attribute__((noinline)) uint64_t low_half(void)
{
	uint32_t low;

	__asm__ volatile("rdtsc" : "=a"(low) : : "edx");
	return (__rdtsc() & ~0xffffffffull) | low;
}

/* What they might make of it.  Each returns the counter; arguments choose a way through it. */
read_fn preceded, hop, punned, twice, moved_distance, moved_branch;
uint64_t table(uint64_t), labels(uint64_t), entered(uint64_t);
extern const uint8_t not_code[8];

#define FUNCTION(name, body)                                                                       \
	".globl " #name "\n.type " #name ", @function\n" #name ":\n.cfi_startproc\n" body          \
	"\n.cfi_endproc\n.size " #name ", . - " #name "\n"
#define RETURN "shl $32, %rdx\nor %rdx, %rax\nret\n"
#define LONG_WAY ".rept 60\nlea 1(%rcx), %rcx\n.endr\n" /* no padding within a short jump */

__asm__(".text\n.p2align 4\n"
	/* the loop leads to right behind it, so what precedes has to move */
	FUNCTION(preceded, "mov $3, %ecx\nlfence\nrdtsc\n1: lea -1(%rcx), %ecx\njrcxz 2f\njmp 1b\n"
			   "2:" RETURN) ".p2align 4\n"
	/* a destination in front of it and another behind: nothing can move, but there is padding
	 */
	FUNCTION(hop, "mov $2, %ecx\n1: rdtsc\n2: lea -1(%rcx), %ecx\njrcxz 3f\njmp 2b\njmp 1b\n"
		      "3:" RETURN) ".p2align 5\n"
	/* the same without padding */
	FUNCTION(punned, LONG_WAY "mov $2, %ecx\n1: rdtsc\n2: sub $1, %ecx\njrcxz 3f\njmp 2b\n"
				  "jmp 1b\n3:" RETURN LONG_WAY "ret\n")
	/* the second is part of what the first one moves */
	FUNCTION(twice, "rdtsc\nrdtsc\nnop\n" RETURN)
		FUNCTION(moved_distance,
			 "rdtsc\nmovl seven(%rip), %ecx\ncmp $7, %ecx\njne 1f\n" RETURN
			 "1: xor %eax, %eax\nret\n")
	/* the carry flag must have survived */
	FUNCTION(moved_branch, "stc\nrdtsc\nnop\njc 1f\nxor %eax, %eax\nret\n1:" RETURN)
	/* a jump table leads to right behind it */
	FUNCTION(table,
		 "lea 9f(%rip), %rdx\nmovslq (%rdx,%rdi,4), %rax\nadd %rdx, %rax\njmp *%rax\n"
		 "1: rdtsc\n2: mov %eax, %ecx\nshl $32, %rdx\nlea (%rdx,%rcx), %rax\nret\n"
		 ".section .rodata\n.balign 4\n9: .long 1b - 9b, 2b - 9b\n.text\n")
	/* so do labels whose addresses are kept */
	FUNCTION(labels, "lea 9f(%rip), %rdx\njmp *(%rdx,%rdi,8)\n"
			 "1: rdtsc\n2: mov %eax, %ecx\nshl $32, %rdx\nlea (%rdx,%rcx), %rax\nret\n"
			 ".section .data.rel.ro,\"aw\"\n.balign 8\n9: .quad 1b, 2b\n.text\n")
	/* so does another function: as if compilers had split this one */
	FUNCTION(
		entered,
		"test %edi, %edi\njnz entered_cold\n"
		"rdtsc\nentered_behind: mov %eax, %ecx\nshl $32, %rdx\n"
		"lea (%rdx,%rcx), %rax\nret\n") ".section .text.unlikely,\"ax\"\n" FUNCTION(entered_cold,
											    "mov "
											    "$5, "
											    "%edx\n"
											    "mov "
											    "$6, "
											    "%eax\n"
											    "jmp "
											    "entere"
											    "d_"
											    "behind"
											    "\n") ".text\n"
	/* assembly with a table in its text, in the middle of what it says is a function */
	FUNCTION(with_data,
		 "lea not_code(%rip), %rax\nret\nnot_code:\n"
		 ".byte 0x0f, 0x31, 0x0f, 0x01, 0xf9, 0x0f, 0x31, 0x90\n") ".section "
									   ".rodata\n.balign "
									   "4\nseven: .long "
									   "7\n.text\n");

extern const uint8_t *with_data(void);

static uint64_t table_first(void)
{
	return table(0);
}

static uint64_t labels_first(void)
{
	return labels(0);
}

static uint64_t entered_first(void)
{
	return entered(0);
}

static uint64_t header(void)
{
	return timeshim_rdtsc();
}

static uint64_t header_aux(void)
{
	uint32_t aux;

	return timeshim_rdtscp(&aux);
}

static void say(const char *name, bool right)
{
	printf("{\"site\": \"%s\", \"right\": %s}\n", name, right ? "true" : "false");
}

/* How far the virtual counter is from the hardware's; 0 without the shim. */
static uint64_t shift(void)
{
	const struct timeshim_clocks_1 *clocks = timeshim_clocks();

	return clocks ? clocks->epoch[clocks->generation & 1].tsc_offset : 0;
}

static void check(const char *name, read_fn *read)
{
	uint64_t before = hardware() + shift();
	uint64_t ticks = read();
	uint64_t after = hardware() + shift();

	say(name, before <= ticks && ticks <= after);
}

static void sites(const char *plugin)
{
	static const struct {
		const char *name;
		read_fn *read;
	} way[] = {
		{ "plain", plain },
		{ "fenced", fenced },
		{ "with_aux", with_aux },
		{ "low_half", low_half },
		{ "preceded", preceded },
		{ "hop", hop },
		{ "punned", punned },
		{ "twice", twice },
		{ "moved_distance", moved_distance },
		{ "moved_branch", moved_branch },
		{ "table", table_first },
		{ "labels", labels_first },
		{ "entered", entered_first },
		{ "timeshim.h", header },
		{ "timeshim.h, aux", header_aux },
	};
	static const uint8_t data[] = { 0x0f, 0x31, 0x0f, 0x01, 0xf9, 0x0f, 0x31, 0x90 };

	for (size_t i = 0; i < sizeof(way) / sizeof(way[0]); i++)
		check(way[i].name, way[i].read);
	/* the ways that lead to right behind an instruction, with what was in rdx and rax */
	say("behind entered", entered(1) == (5ull << 32 | 6));
	say("behind table", table(1) != 0);
	say("behind labels", labels(1) != 0);
	say("data in text", !memcmp(with_data(), data, sizeof(data)));
	if (plugin) {
		uint64_t before = hardware() + shift(), after;
		void *loaded = dlopen(plugin, RTLD_NOW);
		const uint64_t *seen = loaded ? dlsym(loaded, "seen_by_constructor") : NULL;

		after = hardware() + shift();
		say("constructor", seen && before <= *seen && *seen <= after);
		check("plugin", seen ? (read_fn *)dlsym(loaded, "plugin_read") : plain);
		/* again at the same place, once the first is gone */
		dlclose(loaded);
		loaded = dlopen(plugin, RTLD_NOW);
		check("plugin again", (read_fn *)dlsym(loaded, "plugin_read"));
	}
}

static volatile sig_atomic_t stop;

static void on_sigterm(int number)
{
	(void)number;
	stop = 1;
}

struct spinner {
	pthread_t thread;
	uint64_t reads, backward, most; /* ticks that a step took at most */
};

static void *spin(void *argument)
{
	struct spinner *spinner = argument;
	uint64_t last = __rdtsc();
	unsigned int aux;

	while (!stop) {
		uint64_t ticks = ++spinner->reads & 1 ? __rdtsc() : __rdtscp(&aux);
		int64_t step = (int64_t)(ticks - last);

		/* of 2^63 and more: as if an offset that is no longer in force had been added */
		if (step < 0)
			spinner->backward++;
		else if ((uint64_t)step > spinner->most)
			spinner->most = (uint64_t)step;
		last = ticks;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct spinner spinner[16] = { 0 };
	int threads;

	if (argc > 1 && !strcmp(argv[1], "sites")) {
		sites(argv[2]);
		return 0;
	}
	signal(SIGTERM, on_sigterm);
	threads = atoi(argv[2]);
	for (int i = 0; i < threads; i++)
		pthread_create(&spinner[i].thread, NULL, spin, &spinner[i]);
	for (int i = 0; i < threads; i++) {
		pthread_join(spinner[i].thread, NULL);
		printf("{\"reads\": %lu, \"backward\": %lu, \"most\": %lu, \"hz\": %lu}\n",
		       spinner[i].reads, spinner[i].backward, spinner[i].most, timeshim_tsc_hz());
	}
	return 0;
}
