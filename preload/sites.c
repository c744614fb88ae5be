// SPDX-License-Identifier: MIT
/*
 * sites.c - finds the instructions that read the TSC, and what to replace them by.
 *
 * Nine in ten of the byte sequences 0F 31 and 0F 01 F9 are something else, and to overwrite a
 * table of constants breaks whoever computes with it.  So a sequence counts only if it is an
 * instruction of a function: the function's bounds are looked up where the unwinder finds them,
 * and it is decoded from its beginning.  Only functions with such a sequence are decoded, which
 * is what makes this fast enough to be done whenever a program starts.
 *
 * A jump takes five bytes, the instruction has two or three.  What else is overwritten is moved,
 * and must not be anybody's destination: not of a branch in the function, not of one
 * elsewhere (compilers put unlikely parts of functions far away), not of a jump table, not the
 * value of a relocation.  Where that cannot be had, a short jump takes two bytes, and reaches
 * padding with room for the long one; or the distance of the long jump is made of the bytes that
 * are there.
 *
 * Called by the shim before main() and within dlopen(): no heap, no libc but memory functions.
 */
#include <elf.h>
#include <emmintrin.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#include <Zydis/Decoder.h>

#include "sites.h"

#define JUMP 5 /* bytes of jmp rel32 */
#define LONGEST 15 /* bytes of an instruction */
#define SHORT_REACH 130 /* of a branch of two bytes */
#define NEAR 24 /* a window lies within so many bytes of its site */
#define MOST_WATCHED (1u << 16)
#define LOWEST (1u << 16) /* address that can be mapped (vm.mmap_min_addr) */
#define LARGEST_FUNCTION (8u << 20)
#define LARGEST_TABLE 65536 /* entries */
#define MOST_MENTIONED (1u << 16)

/* insn.flags */
#define DESTINATION 1 /* somebody may jump here */
#define ENDS 2 /* never goes on to the next one */
#define TIED 4 /* works, or is found, only where it is */
#define SITE 8
#define MARKED 16 /* as in timeshim.h */
#define FILLER 32 /* nop or int3 */

struct insn {
	uint32_t at; /* from the function's beginning */
	int32_t target; /* of a direct branch; only if BRANCHES */
	uint8_t length;
	uint8_t flags;
	bool branches;
};

struct function {
	uint64_t begin, end;
	uint64_t gap_before,
		gap_after; /* to the end of the one before, the beginning of the next */
	struct insn *insn;
	size_t count;
	bool handlers; /* has, or may have, exception handlers: destinations that are not looked up
			*/
	bool indirect; /* jumps through a register or memory, and not to another function */
	bool opaque; /* indirect, and no table for it was found */
};

struct search {
	const struct ts_object *object;
	ZydisDecoder decoder;
	uint64_t *pair; /* addresses of the byte sequences, ascending */
	size_t pairs;
	uint64_t *
		watched; /* what mentions are looked for near: sites, and where their code begins */
	size_t watches;
	uint64_t *mentioned; /* addresses near those that anything refers to, ascending, ... */
	size_t mentions;
	uint64_t *led_to; /* ... and those of them that are not merely taken, as tables' are */
	size_t leads;
	struct function function;
	void *scratch;
	size_t scratch_size;
};

static const Elf64_Phdr *headers(const struct ts_object *object)
{
	return (const Elf64_Phdr *)object->phdr;
}

/* What is loaded from the file at these addresses, or NULL if not all of it is. */
static const uint8_t *at(const struct ts_object *object, uint64_t address, uint64_t length)
{
	const Elf64_Phdr *phdr = headers(object);

	for (uint32_t i = 0; i < object->phnum; i++)
		if (phdr[i].p_type == PT_LOAD && phdr[i].p_flags & PF_R &&
		    address >= phdr[i].p_vaddr && length <= phdr[i].p_filesz &&
		    address - phdr[i].p_vaddr <= phdr[i].p_filesz - length)
			return (const uint8_t *)(object->bias + address);
	return NULL;
}

static bool is_text(const Elf64_Phdr *phdr)
{
	return phdr->p_type == PT_LOAD && (phdr->p_flags & (PF_R | PF_W | PF_X)) == (PF_R | PF_X);
}

static bool in_text(const struct ts_object *object, uint64_t address)
{
	const Elf64_Phdr *phdr = headers(object);

	for (uint32_t i = 0; i < object->phnum; i++)
		if (is_text(&phdr[i]) && address - phdr[i].p_vaddr < phdr[i].p_filesz)
			return true;
	return false;
}

/* Value of a dynamic tag.  Addresses may have been relocated in place, or not yet. */
static uint64_t dynamic_value(const struct ts_object *object, int64_t tag, bool address)
{
	for (uint64_t where = object->dynamic;; where += sizeof(Elf64_Dyn)) {
		const Elf64_Dyn *dyn = (const void *)at(object, where, sizeof(*dyn));
		uint64_t value;

		if (!where || !dyn || dyn->d_tag == DT_NULL)
			return 0;
		if (dyn->d_tag != tag)
			continue;
		value = dyn->d_un.d_val;
		return address && value - object->low >= object->high - object->low
			       ? value - object->bias
			       : value;
	}
}

/* Those whose TSC is not an application's business; see TS_ALONE_... */
static uint32_t alone(const struct ts_object *object)
{
	static const struct {
		const char *soname;
		uint32_t reason;
	} known[] = {
		{ "libc.so.6", TS_ALONE_LIBC },
		{ "libpthread.so.0", TS_ALONE_LIBC },
		{ "ld-linux-x86-64.so.2", TS_ALONE_LIBC },
		{ "linux-vdso.so.1", TS_ALONE_KERNEL },
		{ "libtimeshim.so", TS_ALONE_SHIM },
	};
	uint64_t offset = dynamic_value(object, DT_SONAME, false);

	for (size_t i = 0; offset && i < sizeof(known) / sizeof(known[0]); i++) {
		size_t length = strlen(known[i].soname) + 1;
		const uint8_t *soname =
			at(object, dynamic_value(object, DT_STRTAB, true) + offset, length);

		if (soname && !memcmp(soname, known[i].soname, length))
			return known[i].reason;
	}
	if (dynamic_value(object, DT_TEXTREL, false) ||
	    dynamic_value(object, DT_FLAGS, false) & DF_TEXTREL)
		return TS_ALONE_TEXTREL;
	return TS_ALONE_NOT;
}

_Bool ts_open_object(struct ts_object *object)
{
	const Elf64_Phdr *phdr = headers(object);

	object->low = UINT64_MAX;
	object->high = object->dynamic = 0;
	for (uint32_t i = 0; i < object->phnum; i++) {
		if (phdr[i].p_type == PT_DYNAMIC)
			object->dynamic = phdr[i].p_vaddr;
		if (phdr[i].p_type != PT_LOAD)
			continue;
		if (phdr[i].p_filesz > phdr[i].p_memsz ||
		    phdr[i].p_vaddr + phdr[i].p_memsz < phdr[i].p_vaddr)
			return false;
		if (phdr[i].p_vaddr < object->low)
			object->low = phdr[i].p_vaddr;
		if (phdr[i].p_vaddr + phdr[i].p_memsz > object->high)
			object->high = phdr[i].p_vaddr + phdr[i].p_memsz;
	}
	if (object->low >= object->high)
		return false;
	object->left_alone = alone(object);
	return true;
}

static void *reserve(size_t size)
{
	/* only what is touched costs anything */
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

/* Byte sequences ---------------------------------------------------------------------------- */

static void note_pair(struct search *search, const uint8_t *p, uint64_t address, size_t left)
{
	if (p[1] == 0x31 || (left > 2 && p[1] == 0x01 && p[2] == 0xf9))
		search->pair[search->pairs++] = address;
}

static void find_pairs(struct search *search, uint64_t address, size_t size)
{
	const uint8_t *text = (const uint8_t *)(search->object->bias + address);
	size_t i = 0;

	for (; i + 17 <= size; i += 16) {
		__m128i here = _mm_loadu_si128((const void *)(text + i));
		__m128i next = _mm_loadu_si128((const void *)(text + i + 1));
		__m128i first = _mm_cmpeq_epi8(here, _mm_set1_epi8(0x0f));
		__m128i second = _mm_or_si128(_mm_cmpeq_epi8(next, _mm_set1_epi8(0x31)),
					      _mm_cmpeq_epi8(next, _mm_set1_epi8(0x01)));
		int found = _mm_movemask_epi8(_mm_and_si128(first, second));

		for (; found; found &= found - 1) {
			size_t k = i + __builtin_ctz(found);

			note_pair(search, text + k, address + k, size - k);
		}
	}
	for (; i + 1 < size; i++)
		if (text[i] == 0x0f)
			note_pair(search, text + i, address + i, size - i);
}

/* Mentions: addresses near a site that something else refers to ------------------------------ */

/* Index of the first of ascending addresses that is not below one. */
static size_t position(const uint64_t *addresses, size_t count, uint64_t address)
{
	size_t low = 0;

	while (low < count) {
		size_t middle = (low + count) / 2;

		if (addresses[middle] < address)
			low = middle + 1;
		else
			count = middle;
	}
	return low;
}

static bool contains(const uint64_t *addresses, size_t count, uint64_t address)
{
	size_t i = position(addresses, count, address);

	return i < count && addresses[i] == address;
}

/* False if there is no room. */
static bool insert(uint64_t *addresses, size_t *count, size_t room, uint64_t address)
{
	size_t i = position(addresses, *count, address);

	if (i < *count && addresses[i] == address)
		return true;
	if (*count == room)
		return false;
	memmove(addresses + i + 1, addresses + i, ((*count)++ - i) * sizeof(*addresses));
	addresses[i] = address;
	return true;
}

static bool is_mentioned(const struct search *search, uint64_t address)
{
	return contains(search->mentioned, search->mentions, address);
}

/* False if there is no room. */
static bool mention(struct search *search, uint64_t address, bool leads)
{
	size_t i = position(search->watched, search->watches, address - NEAR);

	if (i == search->watches || search->watched[i] > address + NEAR)
		return true;
	return insert(search->mentioned, &search->mentions, MOST_MENTIONED, address) &&
	       (!leads || insert(search->led_to, &search->leads, MOST_MENTIONED, address));
}

/* Whether four bytes may be the distance of a branch. */
static bool is_branch(const uint8_t *p)
{
	return p[-1] == 0xe8 || p[-1] == 0xe9 || /* call, jmp */
	       (p[-2] == 0x0f && (p[-1] & 0xf0) == 0x80) || /* jcc */
	       (p[-2] == 0xc7 && p[-1] == 0xf8); /* xbegin */
}

/* Whether they may be that of a label whose address is taken: lea from rip. */
static bool is_label(const uint8_t *p)
{
	return p[-2] == 0x8d && (p[-1] & 0xc7) == 0x05;
}

static bool note_distance(struct search *search, const uint8_t *p, uint64_t address)
{
	int32_t distance;

	memcpy(&distance, p, 4);
	return !(is_branch(p) || is_label(p)) ||
	       mention(search, address + 4 + (uint64_t)(int64_t)distance, is_branch(p));
}

/*
 * Looks at all text, without knowing where instructions begin.  A mention that is none makes us
 * careful in vain; that happens once in millions of bytes.
 */
static bool find_branches(struct search *search, uint64_t address, size_t size)
{
	const uint8_t *text = (const uint8_t *)(search->object->bias + address);
	uint64_t low = search->watched[0] - NEAR;
	uint64_t high = search->watched[search->watches - 1] + NEAR + 1;
	size_t i = 2; /* behind an opcode */

	/* in 32 bits, which hold whatever one object can reach; relative to low */
	if (high - low < 1u << 30 && size < 1u << 30) {
		const __m128i step = _mm_set_epi32(12, 8, 4, 0);
		const __m128i bound = _mm_set1_epi32((int)((high - low) ^ 0x80000000u));

		for (; i + 20 <= size; i += 16) {
			int found = 0;

			for (int k = 0; k < 4; k++) {
				uint32_t end = (uint32_t)(address + i + k + 4 - low);
				__m128i target = _mm_add_epi32(
					_mm_loadu_si128((const void *)(text + i + k)),
					_mm_add_epi32(_mm_set1_epi32((int)end), step));

				/* unsigned target < high - low */
				target = _mm_xor_si128(target, _mm_set1_epi32((int)0x80000000u));
				found |= _mm_movemask_ps(
						 _mm_castsi128_ps(_mm_cmplt_epi32(target, bound)))
					 << 4 * k;
			}
			for (; found; found &= found - 1) {
				int bit = __builtin_ctz(found);
				size_t k = i + bit / 4 + bit % 4 * 4;

				if (!note_distance(search, text + k, address + k))
					return false;
			}
		}
	}
	for (; i + 4 <= size; i++)
		if (!note_distance(search, text + i, address + i))
			return false;
	return true;
}

/* Labels whose addresses the program keeps, as for a computed goto, are values of relocations. */
static bool find_relocations(struct search *search)
{
	const struct ts_object *object = search->object;
	uint64_t table = dynamic_value(object, DT_RELA, true);
	uint64_t size = dynamic_value(object, DT_RELASZ, false);
	const uint8_t *entries = table ? at(object, table, size) : NULL;
	uint64_t where = 0;

	for (uint64_t i = 0; entries && i + sizeof(Elf64_Rela) <= size; i += sizeof(Elf64_Rela)) {
		Elf64_Rela rela;

		memcpy(&rela, entries + i, sizeof(rela));
		if (ELF64_R_TYPE(rela.r_info) == R_X86_64_RELATIVE &&
		    !mention(search, rela.r_addend, false))
			return false;
	}

	/* packed ones, https://sourceware.org/glibc/wiki/DT_RELR: an address, then bitmaps */
	table = dynamic_value(object, 36 /* DT_RELR */, true);
	size = dynamic_value(object, 35 /* DT_RELRSZ */, false);
	entries = table ? at(object, table, size) : NULL;
	for (uint64_t i = 0; entries && i + 8 <= size; i += 8) {
		uint64_t entry, bits = 1;

		memcpy(&entry, entries + i, 8);
		if (entry & 1)
			bits = entry >> 1;
		else
			where = entry;
		for (uint64_t slot = where; bits; bits >>= 1, slot += 8) {
			const uint8_t *value = bits & 1 ? at(object, slot, 8) : NULL;
			uint64_t address;

			if (!value)
				continue;
			memcpy(&address, value, 8);
			if (!mention(search, address, false) ||
			    !mention(search, address - object->bias, false))
				return false;
		}
		where += entry & 1 ? 63 * 8 : 8;
	}
	return true;
}

/* Functions ----------------------------------------------------------------------------------- */

struct cursor {
	const uint8_t *p, *end;
};

static uint64_t take_uleb(struct cursor *c)
{
	uint64_t value = 0;

	for (unsigned int shift = 0; c->p < c->end; shift += 7) {
		uint8_t byte = *c->p++;

		if (shift < 64)
			value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			break;
	}
	return value;
}

/* Size in bytes of a DW_EH_PE format, 0 for those of variable size. */
static size_t pointer_size(uint8_t encoding)
{
	switch (encoding & 0x07) {
	case 0:
	case 4:
		return 8;
	case 2:
		return 2;
	case 3:
		return 4;
	default:
		return 0;
	}
}

/*
 * How the addresses of the FDEs of a CIE are encoded; 0xff if it is not understood.  Tells whether
 * they have a personality, which is what finds exception handlers.
 */
static uint8_t fde_encoding(const struct ts_object *object, uint64_t cie, bool *personality)
{
	const uint8_t *start = at(object, cie, 12), *letter;
	struct cursor c;
	uint32_t length;
	uint8_t version;

	if (!start)
		return 0xff;
	memcpy(&length, start, 4);
	if (length < 9 || length >= 0xfffffff0 || !at(object, cie, 4ull + length))
		return 0xff;
	c = (struct cursor){ start + 8, start + 4 + length };
	version = *c.p++;
	letter = c.p;
	while (c.p < c.end && *c.p)
		c.p++;
	if (c.p++ >= c.end || *letter != 'z')
		return 0; /* absolute */
	take_uleb(&c);
	take_uleb(&c);
	if (version == 1)
		c.p++;
	else
		take_uleb(&c);
	take_uleb(&c);
	for (letter++; *letter && c.p < c.end; letter++) {
		if (*letter == 'R')
			return *c.p;
		if (*letter == 'L') {
			c.p++;
		} else if (*letter == 'P') {
			size_t size = pointer_size(*c.p);

			if (!size)
				return 0xff;
			c.p += 1 + size;
			*personality = true;
		} else if (*letter != 'S' && *letter != 'B') {
			return 0xff;
		}
	}
	return 0;
}

/* How many bytes an FDE covers; 0 if it is not understood. */
static uint64_t fde_range(const struct ts_object *object, uint64_t fde, bool *personality)
{
	const uint8_t *start = at(object, fde, 8);
	uint64_t range = 0;
	uint32_t length, back;
	uint8_t encoding;
	size_t size;

	if (!start)
		return 0;
	memcpy(&length, start, 4);
	memcpy(&back, start + 4, 4);
	*personality = false;
	encoding = fde_encoding(object, fde + 4 - back, personality);
	size = encoding == 0xff ? 0 : pointer_size(encoding);
	if (!size || length >= 0xfffffff0 || length < 4 + 2 * size ||
	    !at(object, fde, 4ull + length))
		return 0;
	memcpy(&range, start + 8 + size, size);
	return range;
}

/* The table that the unwinder bisects (LSB, .eh_frame_hdr): pairs of signed distances from it. */
struct unwind_table {
	uint64_t address;
	const uint8_t *entries;
	size_t count;
};

static struct unwind_table unwind_table(const struct ts_object *object)
{
	const Elf64_Phdr *phdr = headers(object);
	struct unwind_table table = { 0 };

	for (uint32_t i = 0; i < object->phnum; i++) {
		const uint8_t *start;
		uint32_t count;

		if (phdr[i].p_type != PT_GNU_EH_FRAME)
			continue;
		start = at(object, phdr[i].p_vaddr, 12);
		/* version 1; count udata4; table sdata4 relative to the section: what linkers write
		 */
		if (!start || start[0] != 1 || !pointer_size(start[1]) || start[2] != 0x03 ||
		    start[3] != 0x3b)
			continue;
		start += 4 + pointer_size(start[1]);
		table.address = phdr[i].p_vaddr;
		memcpy(&count, start, 4);
		table.entries = at(object, (uint64_t)(start + 4) - object->bias, 8ull * count);
		table.count = table.entries ? count : 0;
	}
	return table;
}

static uint64_t table_begin(const struct unwind_table *table, size_t i)
{
	int32_t distance;

	memcpy(&distance, table->entries + 8 * i, 4);
	return table->address + distance;
}

static uint64_t table_end(const struct ts_object *object, const struct unwind_table *table,
			  size_t i, bool *personality)
{
	int32_t distance;

	memcpy(&distance, table->entries + 8 * i + 4, 4);
	return table_begin(table, i) + fde_range(object, table->address + distance, personality);
}

static bool bounds_by_unwinder(const struct ts_object *object, uint64_t address,
			       struct function *function)
{
	struct unwind_table table = unwind_table(object);
	size_t low = 0, high = table.count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (table_begin(&table, middle) <= address)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return false;
	function->begin = table_begin(&table, low - 1);
	function->gap_before =
		low > 1 ? table_end(object, &table, low - 2, &function->handlers) : function->begin;
	function->end = table_end(object, &table, low - 1, &function->handlers);
	function->gap_after = low < table.count ? table_begin(&table, low) : function->end;
	return address < function->end;
}

/* Hand-written assembly may have a symbol and nothing else. */
static bool bounds_by_symbol(const struct ts_object *object, uint64_t address,
			     struct function *function)
{
	uint64_t symbols = dynamic_value(object, DT_SYMTAB, true);
	uint64_t names = dynamic_value(object, DT_STRTAB, true);

	/* linkers put the names behind the symbols, which bounds them */
	for (; symbols && symbols + sizeof(Elf64_Sym) <= names; symbols += sizeof(Elf64_Sym)) {
		const Elf64_Sym *symbol = (const void *)at(object, symbols, sizeof(*symbol));

		if (!symbol)
			return false;
		if (ELF64_ST_TYPE(symbol->st_info) == STT_FUNC &&
		    address - symbol->st_value < symbol->st_size) {
			function->begin = function->gap_before = symbol->st_value;
			function->end = function->gap_after = symbol->st_value + symbol->st_size;
			function->handlers = true;
			return true;
		}
	}
	return false;
}

static bool decode(const struct search *search, const uint8_t *p, size_t left,
		   ZydisDecodedInstruction *insn)
{
	return ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&search->decoder, NULL, p, left, insn));
}

static struct insn *insn_at(const struct function *function, int64_t at)
{
	size_t low = 0, high = function->count;

	while (low < high) {
		size_t middle = (low + high) / 2;

		if (function->insn[middle].at < at)
			low = middle + 1;
		else
			high = middle;
	}
	return low < function->count && function->insn[low].at == at ? &function->insn[low] : NULL;
}

static void mark(const struct function *function, int64_t at)
{
	struct insn *insn = insn_at(function, at);

	if (insn)
		insn->flags |= DESTINATION;
}

static bool is_filler(ZydisMnemonic mnemonic)
{
	return mnemonic == ZYDIS_MNEMONIC_NOP || mnemonic == ZYDIS_MNEMONIC_INT3;
}

/* Whether an instruction would do the same elsewhere, once its distances are adapted. */
static bool is_tied(const ZydisDecodedInstruction *insn)
{
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_CALL: /* a return address in a trampoline is one that no unwinder knows
				   */
	case ZYDIS_MNEMONIC_ENDBR64: /* a destination by its own account */
	case ZYDIS_MNEMONIC_INT3:
	case ZYDIS_MNEMONIC_INT:
	case ZYDIS_MNEMONIC_SYSCALL: /* leaves its address in rcx, and seccomp may look at it */
	case ZYDIS_MNEMONIC_XBEGIN:
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JRCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
		return true;
	default:
		/* an indirect jump is moved as anything else is; so is one of the usual direct ones
		 */
		return insn->meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
	}
}

static bool is_indirect_jump(const ZydisDecodedInstruction *insn)
{
	return insn->mnemonic == ZYDIS_MNEMONIC_JMP && !insn->raw.imm[0].is_relative &&
	       !(insn->attributes & ZYDIS_ATTRIB_IS_RELATIVE);
}

/*
 * Marks what a jump table may lead to.  Its entries are distances from itself, or addresses; and
 * it ends, at the latest, where they no longer lead into text.
 */
static bool mark_table(const struct search *search, uint64_t table, bool absolute)
{
	const struct function *function = &search->function;
	size_t size = absolute ? 8 : 4, i;

	for (i = 0; i < LARGEST_TABLE; i++) {
		const uint8_t *entry = at(search->object, table + i * size, size);
		uint64_t target = 0;
		int32_t distance;

		if (!entry)
			break;
		if (absolute) {
			memcpy(&target, entry, 8);
		} else {
			memcpy(&distance, entry, 4);
			target = table + distance;
		}
		if (!in_text(search->object, target))
			break;
		mark(function, (int64_t)(target - function->begin));
	}
	return i > 0;
}

static bool is_known(const struct function *function, uint64_t address)
{
	return function->count && address >= function->begin && address < function->end;
}

/* Finds the function that an address lies in. */
static bool find_function(const struct ts_object *object, uint64_t address,
			  struct function *function)
{
	return (bounds_by_unwinder(object, address, function) ||
		bounds_by_symbol(object, address, function)) &&
	       in_text(object, function->begin) &&
	       at(object, function->begin, function->end - function->begin) &&
	       function->end - function->begin <= LARGEST_FUNCTION;
}

/* Decodes the function that an address lies in; false if that cannot be done. */
static bool look_at_function(struct search *search, uint64_t address)
{
	struct function *function = &search->function;
	const struct ts_object *object = search->object;
	bool tables = false;
	const uint8_t *code;
	uint64_t size;

	if (is_known(function, address))
		return true;
	function->count = 0;
	if (!find_function(object, address, function))
		return false;
	size = function->end - function->begin;
	code = at(object, function->begin, size);

	if (search->scratch_size < size * sizeof(struct insn)) {
		if (search->scratch)
			munmap(search->scratch, search->scratch_size);
		search->scratch_size = size * sizeof(struct insn);
		search->scratch = reserve(search->scratch_size);
		if (!search->scratch) {
			search->scratch_size = 0;
			return false;
		}
	}
	function->insn = search->scratch;
	function->indirect = false;

	for (uint64_t i = 0; i < size;) {
		struct insn *insn = &function->insn[function->count];
		ZydisDecodedInstruction decoded;

		if (!decode(search, code + i, size - i, &decoded)) {
			function->count = 0;
			return false;
		}
		*insn = (struct insn){ .at = (uint32_t)i, .length = decoded.length };
		if (is_tied(&decoded))
			insn->flags |= TIED;
		if (is_filler(decoded.mnemonic))
			insn->flags |= FILLER;
		if (decoded.mnemonic == ZYDIS_MNEMONIC_RDTSC ||
		    decoded.mnemonic == ZYDIS_MNEMONIC_RDTSCP)
			insn->flags |= decoded.raw.rex.W ? MARKED : SITE;
		if (decoded.mnemonic == ZYDIS_MNEMONIC_JMP ||
		    decoded.mnemonic == ZYDIS_MNEMONIC_RET ||
		    decoded.mnemonic == ZYDIS_MNEMONIC_UD2 ||
		    decoded.mnemonic == ZYDIS_MNEMONIC_HLT)
			insn->flags |= ENDS;
		if (decoded.mnemonic == ZYDIS_MNEMONIC_ENDBR64)
			insn->flags |= DESTINATION;
		if (decoded.raw.imm[0].is_relative) {
			int64_t target = (int64_t)i + decoded.length + decoded.raw.imm[0].value.s;

			insn->branches = target >= 0 && target < (int64_t)size;
			insn->target = (int32_t)target;
		}
		function->indirect |= is_indirect_jump(&decoded);
		function->count++;
		i += decoded.length;
	}

	function->insn[0].flags |= DESTINATION;
	for (size_t i = 0; i < function->count; i++)
		if (function->insn[i].branches)
			mark(function, function->insn[i].target);
	if (function->indirect) {
		/* once more, now that there is something to mark */
		for (size_t i = 0; i < function->count; i++) {
			const struct insn *insn = &function->insn[i];
			ZydisDecodedInstruction decoded;

			if (!decode(search, code + insn->at, insn->length, &decoded) ||
			    decoded.raw.disp.size != 32)
				continue;
			if (decoded.mnemonic == ZYDIS_MNEMONIC_LEA &&
			    decoded.attributes & ZYDIS_ATTRIB_IS_RELATIVE)
				tables |= mark_table(search,
						     function->begin + insn->at + insn->length +
							     decoded.raw.disp.value,
						     false);
			else if (decoded.attributes & ZYDIS_ATTRIB_HAS_SIB &&
				 decoded.raw.sib.base == 5 && !decoded.raw.modrm.mod)
				tables |=
					mark_table(search, (uint64_t)decoded.raw.disp.value, true);
		}
	}
	function->opaque = function->indirect && !tables;
	return true;
}

/* Plans ---------------------------------------------------------------------------------------- */

static bool is_destination(const struct search *search, const struct insn *insn)
{
	return insn->flags & DESTINATION || is_mentioned(search, search->function.begin + insn->at);
}

/* Whether what lies at an address is a short branch into the middle of a stretch. */
static bool leads_in(const uint8_t *p, uint64_t address, uint64_t first, uint64_t end)
{
	uint64_t target = address + 2 + (uint64_t)(int8_t)p[1];
	/* jcc, jmp, loop and jrcxz */
	bool branch = (p[0] & 0xf0) == 0x70 || p[0] == 0xeb || (p[0] & 0xfc) == 0xe0;

	return branch && target > first && target < end;
}

/* Whether a short branch outside of the function does: a part of it that lies elsewhere, say. */
static bool entered_by_neighbour(const struct search *search, uint64_t first, uint64_t end)
{
	const struct function *function = &search->function;
	uint64_t where = first - SHORT_REACH;
	struct function neighbour;
	bool maybe = false;

	/* where instructions begin matters only if there is anything that looks like one */
	for (uint64_t i = where; i < end + SHORT_REACH && !maybe; i++) {
		const uint8_t *p =
			i >= function->begin && i < function->end ? NULL : at(search->object, i, 2);

		maybe = p && leads_in(p, i, first, end);
	}
	if (!maybe)
		return false;
	while (where < end + SHORT_REACH) {
		const uint8_t *p = at(search->object, where, 2);

		if (where >= function->begin && where < function->end) {
			where = function->end;
		} else if (bounds_by_unwinder(search->object, where, &neighbour)) {
			ZydisDecodedInstruction decoded;

			for (where = neighbour.begin;
			     where < neighbour.end && where < end + SHORT_REACH;
			     where += decoded.length) {
				p = at(search->object, where, neighbour.end - where);
				if (!p || !decode(search, p, neighbour.end - where, &decoded) ||
				    (decoded.length == 2 && leads_in(p, where, first, end)))
					return true;
			}
		} else {
			if (p && leads_in(p, where, first, end))
				return true;
			where++;
		}
	}
	return false;
}

/* Whether the instructions first to last can be moved; their bytes are then free for a jump. */
static bool can_move(const struct search *search, size_t first, size_t last)
{
	const struct function *function = &search->function;
	const struct insn *insn = function->insn;

	for (size_t i = first; i <= last; i++) {
		if (i > first && is_destination(search, &insn[i]))
			return false;
		if (insn[i].flags & (TIED | MARKED))
			return false;
		/* nothing may follow what is left by a jump: the next instruction is another block
		 */
		if (i < last && (insn[i].flags & ENDS || insn[i].branches))
			return false;
	}
	return !entered_by_neighbour(search, function->begin + insn[first].at,
				     function->begin + insn[last].at + insn[last].length);
}

static bool plan_move(const struct search *search, size_t i, uint64_t floor, struct ts_site *site)
{
	const struct function *function = &search->function;
	const struct insn *insn = function->insn;
	size_t first = i, last = i;

	/* With what follows; if that will not do, with what precedes: `lfence`, as often as not. */
	while (last + 1 < function->count && insn[last].at + insn[last].length - insn[i].at < JUMP)
		last++;
	if (insn[last].at + insn[last].length - insn[i].at < JUMP || function->opaque ||
	    !can_move(search, i, last)) {
		last = i;
		while (first && insn[i].at + insn[i].length - insn[first].at < JUMP)
			first--;
		if (insn[i].at + insn[i].length - insn[first].at < JUMP || function->opaque ||
		    function->begin + insn[first].at < floor || !can_move(search, first, last))
			return false;
	}
	site->how = TS_SITE_MOVED;
	site->window = function->begin + insn[first].at;
	site->length = insn[last].at + insn[last].length - insn[first].at;
	return true;
}

static bool is_free(uint64_t address, const struct ts_site *sites, size_t count)
{
	for (size_t i = count; i--;)
		if (sites[i].how == TS_SITE_HOP && address < sites[i].padding + JUMP &&
		    sites[i].padding < address + JUMP)
			return false;
	return true;
}

/* Room for a jump among filler that nobody executes, within reach of a short jump at from. */
static bool find_padding(const struct search *search, uint64_t begin, uint64_t end, uint64_t from,
			 const struct ts_site *sites, size_t count, uint64_t *padding)
{
	for (; begin + JUMP <= end; begin++) {
		int64_t distance = (int64_t)(begin - (from + 2));

		if (distance >= INT8_MIN && distance <= INT8_MAX && is_free(begin, sites, count) &&
		    !is_mentioned(search, begin)) {
			*padding = begin;
			return true;
		}
	}
	return false;
}

/* Where filler that begins at an address ends: at most at end. */
static uint64_t filler_end(const struct search *search, uint64_t begin, uint64_t end)
{
	ZydisDecodedInstruction decoded;

	while (begin < end) {
		const uint8_t *p = at(search->object, begin, end - begin);

		if (!p || !decode(search, p, end - begin, &decoded) || !is_filler(decoded.mnemonic))
			break;
		begin += decoded.length;
	}
	return begin < end ? begin : end;
}

static bool plan_hop(const struct search *search, size_t i, const struct ts_site *sites,
		     size_t count, struct ts_site *site)
{
	const struct function *function = &search->function;
	const struct insn *insn = function->insn;
	uint64_t from = site->address;
	bool found = find_padding(search, function->gap_before,
				  filler_end(search, function->gap_before, function->begin), from,
				  sites, count, &site->padding) ||
		     (insn[function->count - 1].flags & ENDS &&
		      find_padding(search, function->end,
				   filler_end(search, function->end, function->gap_after), from,
				   sites, count, &site->padding));

	for (size_t k = 1; !found && !function->opaque && k < function->count; k++) {
		size_t run = k;

		if (!(insn[k - 1].flags & ENDS))
			continue;
		while (run < function->count && insn[run].flags & FILLER &&
		       !is_destination(search, &insn[run]))
			run++;
		if (run > k)
			found = find_padding(search, function->begin + insn[k].at,
					     function->begin + insn[run - 1].at +
						     insn[run - 1].length,
					     from, sites, count, &site->padding);
	}
	if (!found)
		return false;
	site->how = TS_SITE_HOP;
	site->window = site->address;
	site->length = insn[i].length;
	return true;
}

/* Whether there can be anything where the jump would lead: programs that are not PIE lie low. */
static bool plan_pun(const struct search *search, size_t i, struct ts_site *site)
{
	const uint8_t *p = at(search->object, site->address, JUMP);
	int32_t distance;

	if (!p)
		return false;
	memcpy(&distance, p + 1, sizeof(distance));
	if (search->object->low && distance < 0 &&
	    site->address < (uint64_t)-(int64_t)distance + LOWEST)
		return false;
	site->how = TS_SITE_PUNNED;
	site->window = site->address;
	site->length = search->function.insn[i].length;
	return true;
}

static void plan(const struct search *search, size_t i, struct ts_site *sites, size_t count)
{
	struct ts_site *site = &sites[count];
	uint64_t floor = 0;

	if (count) {
		const struct ts_site *before = &sites[count - 1];

		floor = before->window + before->length;
		if (before->how == TS_SITE_MOVED && site->address < floor) {
			site->how = TS_SITE_MOVED;
			site->window = before->window;
			site->length = before->length;
			return;
		}
		/* its jump ends in our bytes, which must stay */
		if (before->how == TS_SITE_PUNNED && site->address < before->window + JUMP) {
			site->how = TS_SITE_RAW;
			return;
		}
	}
	if (!plan_move(search, i, floor, site) && !plan_hop(search, i, sites, count, site) &&
	    !plan_pun(search, i, site))
		site->how = TS_SITE_RAW;
}

static void count_site(struct ts_scan *scan, const struct ts_site *site)
{
	scan->sites++;
	if (site->how == TS_SITE_MOVED)
		scan->moved++;
	else if (site->how == TS_SITE_HOP)
		scan->hops++;
	else if (site->how == TS_SITE_PUNNED)
		scan->punned++;
	else
		scan->raw++;
}

/* The first instruction of the straight piece of code that leads to another one. */
static const struct insn *piece(const struct search *search, const struct insn *insn)
{
	const struct function *function = &search->function;
	const struct insn *first = insn;

	while (first > function->insn && !(first[-1].flags & ENDS))
		first--;
	while (first < insn && first->flags & FILLER && !is_destination(search, first))
		first++;
	return first;
}

/*
 * Assembly may keep tables beside its code, within what it says is a function, and they may even
 * decode.  They differ from code in that nothing leads to them.
 */
static bool is_code(const struct search *search, const struct insn *insn)
{
	const struct function *function = &search->function;
	const struct insn *first = piece(search, insn);

	return function->handlers || function->indirect || first->flags & DESTINATION ||
	       contains(search->led_to, search->leads, function->begin + first->at);
}

/* The instruction that a pair ends, of the function that was looked at last; there may be prefixes.
 */
static const struct insn *instruction(struct search *search, uint64_t pair)
{
	int64_t at;

	if (!look_at_function(search, pair))
		return NULL;
	at = (int64_t)(pair - search->function.begin);
	for (int64_t prefixes = 0; prefixes < LONGEST; prefixes++) {
		const struct insn *insn = insn_at(&search->function, at - prefixes);

		if (insn)
			return insn->flags & (SITE | MARKED) ? insn : NULL;
	}
	return NULL;
}

/*
 * Whether an instruction that reads the TSC may end with a pair.  One of any 15 bytes in a row
 * begins an instruction; if from none of those a little before does decoding come to the pair, then
 * neither does it from the function's beginning, however far that is.  Ways that meet go on as one.
 */
static bool may_read_tsc(const struct search *search, const struct function *function,
			 uint64_t pair)
{
	const uint64_t first = pair - 2 * LONGEST;
	bool visited[3 * LONGEST] = { false };

	if (pair - function->begin < 2 * LONGEST)
		return true;
	for (uint64_t start = first; start < first + LONGEST; start++) {
		ZydisDecodedInstruction insn;

		for (uint64_t where = start; where <= pair && !visited[where - first];
		     where += insn.length) {
			uint64_t left = function->end - where;

			visited[where - first] = true;
			if (!decode(search, at(search->object, where, left), left, &insn))
				break;
			if ((insn.mnemonic == ZYDIS_MNEMONIC_RDTSC ||
			     insn.mnemonic == ZYDIS_MNEMONIC_RDTSCP) &&
			    where + insn.length > pair)
				return true;
		}
	}
	return false;
}

/* Whether an address is that of an instruction, or inside of one, that reads the TSC. */
static bool reads_tsc(const struct search *search, const struct function *function, uint64_t pair)
{
	ZydisDecodedInstruction insn = { 0 };

	for (uint64_t where = function->begin; where <= pair; where += insn.length) {
		uint64_t left = function->end - where;

		if (!decode(search, at(search->object, where, left), left, &insn))
			return true; /* for whoever decodes all of it to find out */
	}
	return insn.mnemonic == ZYDIS_MNEMONIC_RDTSC || insn.mnemonic == ZYDIS_MNEMONIC_RDTSCP;
}

/* Tells whether a pair is a site, or else counts what it is. */
static bool judge(struct search *search, uint64_t pair, struct ts_scan *scan)
{
	const struct insn *insn = NULL;
	struct function function = search->function;

	if (!is_known(&function, pair) && !find_function(search->object, pair, &function)) {
		scan->outside++;
		return false;
	}
	/* most are part of other instructions, and to decode up to there is enough to see that */
	if (is_known(&search->function, pair) ||
	    (may_read_tsc(search, &function, pair) && reads_tsc(search, &function, pair))) {
		insn = instruction(search, pair);
		if (!is_known(&search->function, pair)) {
			scan->undecoded++;
			return false;
		}
	}
	if (insn && insn->flags & SITE)
		return true;
	if (insn)
		scan->marked++;
	else
		scan->inside++;
	return false;
}

/* Keeps of the pairs those that are sites. */
static void judge_pairs(struct search *search, struct ts_scan *scan)
{
	size_t kept = 0;

	for (size_t i = 0; i < search->pairs; i++)
		if (judge(search, search->pair[i], scan))
			search->pair[kept++] = search->pair[i];
	search->pairs = kept;
}

/* Finds whatever refers to places near the pairs; false if there is no room. */
static bool find_mentions(struct search *search)
{
	const Elf64_Phdr *phdr = headers(search->object);

	for (size_t i = 0; i < search->pairs; i++) {
		const struct insn *insn = instruction(search, search->pair[i]);
		uint64_t begin = search->function.begin;

		if (!insert(search->watched, &search->watches, MOST_WATCHED, begin + insn->at) ||
		    !insert(search->watched, &search->watches, MOST_WATCHED,
			    begin + piece(search, insn)->at))
			return false;
	}
	for (uint32_t i = 0; i < search->object->phnum; i++)
		if (is_text(&phdr[i]) && !find_branches(search, phdr[i].p_vaddr, phdr[i].p_filesz))
			return false;
	return find_relocations(search);
}

static bool find(struct search *search, struct ts_site *sites, size_t room, struct ts_scan *scan)
{
	const Elf64_Phdr *phdr = headers(search->object);

	for (uint32_t i = 0; i < search->object->phnum; i++)
		if (is_text(&phdr[i]))
			find_pairs(search, phdr[i].p_vaddr, phdr[i].p_filesz);
	judge_pairs(search, scan);
	if (search->pairs && !find_mentions(search))
		return false;
	for (size_t i = 0; i < search->pairs; i++) {
		const struct insn *insn = instruction(search, search->pair[i]);
		struct ts_site site = { .function = search->function.begin };

		if (!is_code(search, insn)) {
			scan->inside++;
			continue;
		}
		if (scan->sites == room) /* the caller asks again, with more */
			return scan->sites = (uint32_t)search->pairs, true;
		site.address = search->function.begin + insn->at;
		site.kind =
			search->pair[i] + 2 == site.address + insn->length ? TS_RDTSC : TS_RDTSCP;
		sites[scan->sites] = site;
		plan(search, (size_t)(insn - search->function.insn), sites, scan->sites);
		count_site(scan, &sites[scan->sites]);
	}
	return true;
}

long ts_find_sites(const struct ts_object *object, struct ts_site *sites, size_t room,
		   struct ts_scan *scan)
{
	const Elf64_Phdr *phdr = headers(object);
	struct search search = { .object = object };
	const size_t watched_size = MOST_WATCHED * sizeof(uint64_t);
	const size_t mentioned_size = MOST_MENTIONED * sizeof(uint64_t);
	size_t pairs_size;
	long result = -ENOMEM;

	*scan = (struct ts_scan){ 0 };
	for (uint32_t i = 0; i < object->phnum; i++)
		if (is_text(&phdr[i]))
			scan->text += phdr[i].p_filesz;
	if (!scan->text)
		return 0;
	ZydisDecoderInit(&search.decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	pairs_size = (scan->text / 2 + 1) * sizeof(uint64_t);
	search.pair = reserve(pairs_size);
	search.watched = reserve(watched_size);
	search.mentioned = reserve(mentioned_size);
	search.led_to = reserve(mentioned_size);
	if (search.pair && search.watched && search.mentioned && search.led_to &&
	    find(&search, sites, room, scan))
		result = scan->sites;
	if (search.pair)
		munmap(search.pair, pairs_size);
	if (search.watched)
		munmap(search.watched, watched_size);
	if (search.mentioned)
		munmap(search.mentioned, mentioned_size);
	if (search.led_to)
		munmap(search.led_to, mentioned_size);
	if (search.scratch)
		munmap(search.scratch, search.scratch_size);
	return result;
}
