// SPDX-License-Identifier: MIT
/*
 * trampoline.c - the code that runs instead of an instruction that reads the TSC.
 *
 * Like the instruction it changes rax and rdx, RDTSCP also rcx, and nothing else: no
 * other register, no flag, no byte of the red zone.  Flags are kept with lahf and seto, since
 * popf takes as long as the instruction itself.  Like every read of a clock it looks at the
 * generation before and after, and starts over if that has changed: frozen at any instruction
 * and thawed under another epoch, it has not read the counter yet, or reads it again, or has
 * seen that its value was one of before the freeze.
 *
 * What was moved here follows, then a jump back.
 */
#include <string.h>

#include <Zydis/Decoder.h>

#include "shim.h"
#include "tsc.h"

#define MOVED_LARGEST 15 /* bytes of an instruction */

/*
 * Two templates, which are copied; never called.  rdi: the page; rsi: the generation; r8: its
 * epoch. A ratio of 1, which is nearly all there are, needs no multiplication.
 */
#define TEMPLATE(name, instruction)                                                                \
	__asm__ volatile(                                                                          \
		#name "_begin:\n"                                                                  \
		      "	lea	-160(%%rsp), %%rsp\n" /* 128 of them are the red zone */           \
		      "	mov	%%rdi, (%%rsp)\n"                                                      \
		      "	mov	%%rsi, 8(%%rsp)\n"                                                     \
		      "	mov	%%r8, 16(%%rsp)\n"                                                     \
		      "	lahf\n"                                                                    \
		      "	seto	%%al\n"                                                               \
		      "	mov	%%eax, 24(%%rsp)\n"                                                    \
		      "	movabs	$0x1122334455667788, %%rdi\n" #name "_page:\n"                     \
		      "1:	mov	%c[generation](%%rdi), %%rsi\n"                                      \
		      "	mov	%%esi, %%eax\n"                                                        \
		      "	and	$1, %%eax\n"                                                           \
		      "	imul	%[size], %%eax, %%eax\n"                                              \
		      "	lea	%c[epoch](%%rdi,%%rax), %%r8\n"                                        \
		      "	mov	%c[ratio](%%r8), %%rax\n"                                              \
		      "	rol	$4, %%rax\n"                                                           \
		      "	dec	%%rax\n"                                                               \
		      "	jnz	3f\n"                                                                  \
		      "	" instruction "\n"                                                         \
		      "	add	%c[offset](%%r8), %%eax\n"                                             \
		      "	adc	%c[offset]+4(%%r8), %%edx\n"                                           \
		      "	cmp	%c[generation](%%rdi), %%rsi\n"                                        \
		      "	jne	1b\n"                                                                  \
		      "2:	mov	%%eax, %%esi\n"                                                      \
		      "	mov	24(%%rsp), %%eax\n"                                                    \
		      "	add	$0x7f, %%al\n" /* sets OF if seto had seen it */                   \
		      "	sahf\n"                                                                    \
		      "	mov	%%esi, %%eax\n"                                                        \
		      "	mov	(%%rsp), %%rdi\n"                                                      \
		      "	mov	8(%%rsp), %%rsi\n"                                                     \
		      "	mov	16(%%rsp), %%r8\n"                                                     \
		      "	lea	160(%%rsp), %%rsp\n"                                                   \
		      "	jmp	4f\n"                                                                  \
		      "3:	" instruction "\n"                                                 \
		      "	shl	$32, %%rdx\n"                                                          \
		      "	or	%%rdx, %%rax\n"                                                         \
		      "	mulq	%c[ratio](%%r8)\n"                                                    \
		      "	shrd	%[shift], %%rdx, %%rax\n"                                             \
		      "	add	%c[offset](%%r8), %%rax\n"                                             \
		      "	mov	%%rax, %%rdx\n"                                                        \
		      "	shr	$32, %%rdx\n"                                                          \
		      "	mov	%%eax, %%eax\n"                                                        \
		      "	cmp	%c[generation](%%rdi), %%rsi\n"                                        \
		      "	jne	1b\n"                                                                  \
		      "	jmp	2b\n"                                                                  \
		      "4:\n" #name "_end:\n"                                                       \
		:                                                                                  \
		: [generation] "i"(offsetof(struct ts_clock_area, generation)),                    \
		  [epoch] "i"(offsetof(struct ts_clock_area, epoch)),                              \
		  [size] "i"(sizeof(struct ts_epoch)),                                             \
		  [ratio] "i"(offsetof(struct ts_epoch, tsc_ratio)),                               \
		  [offset] "i"(offsetof(struct ts_epoch, tsc_offset)), [shift] "i"(TS_RATIO_SHIFT) \
		: "memory")

_Static_assert(TS_RATIO_SHIFT == 60, "the templates rotate a ratio of 1 into bit 0");

__attribute__((used, noinline, noclone)) static void templates(void)
{
	TEMPLATE(template_rdtsc, "rdtsc");
	TEMPLATE(template_rdtscp, "rdtscp");
}

extern __attribute__((visibility("hidden"))) const uint8_t template_rdtsc_begin[],
	template_rdtsc_page[], template_rdtsc_end[], template_rdtscp_begin[],
	template_rdtscp_page[], template_rdtscp_end[];

static const struct {
	const uint8_t *begin, *page, *end;
} template[] = {
	[TS_RDTSC] = { template_rdtsc_begin, template_rdtsc_page, template_rdtsc_end },
	[TS_RDTSCP] = { template_rdtscp_begin, template_rdtscp_page, template_rdtscp_end },
};

/* The distance from the end of an instruction to what it refers to; false if it is too far. */
static bool write_distance(uint8_t *to, uint64_t end, uint64_t target)
{
	int64_t distance = (int64_t)(target - end);
	int32_t stored = (int32_t)distance;

	memcpy(to, &stored, sizeof(stored));
	return stored == distance;
}

bool write_jump(uint8_t *to, uint64_t from, uint64_t target)
{
	*to = 0xe9;
	return write_distance(to + 1, from + 5, target);
}

static size_t write_template(uint8_t *to, int kind, const void *page)
{
	size_t size = (size_t)(template[kind].end - template[kind].begin);

	memcpy(to, template[kind].begin, size);
	memcpy(to + (template[kind].page - template[kind].begin) - sizeof(page), &page,
	       sizeof(page));
	return size;
}

/* Writes an instruction that lay at from so that it does the same; 0 if it cannot. */
static size_t write_moved(uint8_t *to, const uint8_t *from, const ZydisDecodedInstruction *insn)
{
	uint64_t end = (uint64_t)from + insn->length, target;

	if (insn->raw.imm[0].is_relative) {
		size_t opcode = 1;

		target = end + (uint64_t)insn->raw.imm[0].value.s;
		if (insn->mnemonic == ZYDIS_MNEMONIC_JMP) {
			to[0] = 0xe9;
		} else {
			/* the condition is in the low four bits of the short form and of the long
			 */
			to[0] = 0x0f;
			to[1] = 0x80 | (insn->opcode & 0x0f);
			opcode = 2;
		}
		return write_distance(to + opcode, (uint64_t)to + opcode + 4, target) ? opcode + 4
										      : 0;
	}
	memcpy(to, from, insn->length);
	if (insn->attributes & ZYDIS_ATTRIB_IS_RELATIVE) {
		target = end + (uint64_t)insn->raw.disp.value;
		if (!write_distance(to + insn->raw.disp.offset, (uint64_t)to + insn->length,
				    target))
			return 0;
	}
	return insn->length;
}

size_t write_trampoline(uint8_t *to, const struct ts_object *object, const struct ts_site *site,
			const void *page)
{
	const uint8_t *from = (const uint8_t *)(object->bias + site->window);
	const uint8_t *end = from + site->length;
	ZydisDecodedInstruction insn;
	ZydisDecoder decoder;
	uint8_t *out = to;

	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	for (; from < end; from += insn.length) {
		size_t size;

		if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, NULL, from,
								(size_t)(end - from), &insn)))
			return 0;
		if (insn.mnemonic == ZYDIS_MNEMONIC_RDTSC)
			size = write_template(out, TS_RDTSC, page);
		else if (insn.mnemonic == ZYDIS_MNEMONIC_RDTSCP)
			size = write_template(out, TS_RDTSCP, page);
		else
			size = write_moved(out, from, &insn);
		if (!size)
			return 0;
		out += size;
	}
	if (!write_jump(out, (uint64_t)out, (uint64_t)end))
		return 0;
	return (size_t)(out + 5 - to);
}

/*
 * The dynamic linker calls an empty function of its own here, about which its compiler may have
 * known that it changes nothing.
 */
__asm__(".text\n"
	".globl tell_of_objects\n"
	".hidden tell_of_objects\n"
	".type tell_of_objects, @function\n"
	"tell_of_objects:\n"
	"	.cfi_startproc\n"
	"	push	%rbp\n"
	"	.cfi_def_cfa_offset 16\n"
	"	.cfi_offset rbp, -16\n"
	"	mov	%rsp, %rbp\n"
	"	.cfi_def_cfa_register rbp\n"
	"	push	%rax\n"
	"	push	%rcx\n"
	"	push	%rdx\n"
	"	push	%rsi\n"
	"	push	%rdi\n"
	"	push	%r8\n"
	"	push	%r9\n"
	"	push	%r10\n"
	"	push	%r11\n"
	"	sub	$520, %rsp\n"
	"	and	$-16, %rsp\n"
	"	fxsave	(%rsp)\n"
	"	call	objects_changed\n"
	"	fxrstor	(%rsp)\n"
	"	mov	-8(%rbp), %rax\n"
	"	mov	-16(%rbp), %rcx\n"
	"	mov	-24(%rbp), %rdx\n"
	"	mov	-32(%rbp), %rsi\n"
	"	mov	-40(%rbp), %rdi\n"
	"	mov	-48(%rbp), %r8\n"
	"	mov	-56(%rbp), %r9\n"
	"	mov	-64(%rbp), %r10\n"
	"	mov	-72(%rbp), %r11\n"
	"	leave\n"
	"	.cfi_def_cfa rsp, 8\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size tell_of_objects, . - tell_of_objects\n");
