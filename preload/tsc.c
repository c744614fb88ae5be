// SPDX-License-Identifier: MIT
/*
 * tsc.c - rewrites the instructions that read the TSC in all that is loaded, and will be.
 *
 * Before main(), and whenever the dynamic linker has mapped more and run nothing of it yet: it
 * tells debuggers so by calling _dl_debug_state() with r_state RT_CONSISTENT (glibc,
 * elf/dl-open.c), an empty function, whose place a jump to us takes.  At both moments no other
 * thread can be in the code that is changed, so it is simply written.
 *
 * Text is written through /proc/self/mem, for which nothing has to become writable, and the
 * kernel's map of the process stays as it was; where that is forbidden, by way of mprotect().
 * Trampolines are one more mapping for each object that has sites, writable until they are
 * written and executable after.
 *
 * What cannot be rewritten is counted on the page, and goes on to read the hardware.
 */
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim.h"
#include "timeshim.h"
#include "tsc.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define PAGE 4096ull
#define JUMP 5
#define HIGHEST (1ull << 47) /* of what a process may map */
#define REACH (INT64_C(0x7ff00000)) /* of a jump, less what objects' ends and trampolines take */

/* timeshim.h finds the page by this. */
const struct timeshim_clocks_1 *timeshim_clocks_1;

_Static_assert(offsetof(struct timeshim_clocks_1, generation) ==
		       offsetof(struct ts_clock_area, generation),
	       "timeshim.h is stale");
_Static_assert(offsetof(struct timeshim_clocks_1, epoch) == offsetof(struct ts_clock_area, epoch),
	       "timeshim.h is stale");
_Static_assert(offsetof(struct timeshim_epoch_1, tsc_ratio) == offsetof(struct ts_epoch, tsc_ratio),
	       "timeshim.h is stale");
_Static_assert(offsetof(struct timeshim_epoch_1, tsc_offset) ==
		       offsetof(struct ts_epoch, tsc_offset),
	       "timeshim.h is stale");
_Static_assert(sizeof(struct timeshim_epoch_1) == sizeof(struct ts_epoch), "timeshim.h is stale");
_Static_assert(offsetof(struct timeshim_clocks_1, tsc_hz) == offsetof(struct ts_clock_area, tsc_hz),
	       "timeshim.h is stale");

/* Of all that the dynamic linker has told of.  Only touched while it holds its lock. */
struct known {
	uint64_t dynamic; /* where its dynamic section is: two objects never share one */
	uint64_t bias;
	bool present;
};

struct mapping {
	void *address;
	size_t size;
	uint64_t owner; /* known.dynamic */
};

struct list {
	void *items;
	size_t count, room; /* in items */
};

static struct list known, mappings;
static struct r_debug *debug;
static int memory = -1; /* /proc/self/mem, while something is written */

/* Lists, on memory of their own ---------------------------------------------------------------- */

static void *append(struct list *list, size_t size)
{
	if (list->count == list->room) {
		size_t room = list->room ? 2 * list->room : PAGE / size;
		void *items = mmap(NULL, room * size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (items == MAP_FAILED)
			return NULL;
		if (list->room) {
			memcpy(items, list->items, list->count * size);
			munmap(list->items, list->room * size);
		}
		list->items = items;
		list->room = room;
	}
	return (char *)list->items + list->count++ * size;
}

static void drop(struct list *list, size_t size, size_t i)
{
	char *item = (char *)list->items + i * size;

	memmove(item, item + size, (--list->count - i) * size);
}

/* Writing ----------------------------------------------------------------------------------------
 */

static bool write_text(uint64_t address, const void *bytes, size_t size)
{
	uint64_t start = address / PAGE * PAGE, end = (address + size + PAGE - 1) / PAGE * PAGE;

	if (memory < 0)
		memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	if (memory >= 0 && pwrite(memory, bytes, size, (off_t)address) == (ssize_t)size)
		return true;
	if (mprotect((void *)start, end - start, PROT_READ | PROT_WRITE))
		return false;
	memcpy((void *)address, bytes, size);
	mprotect((void *)start, end - start, PROT_READ | PROT_EXEC);
	return true;
}

static void *map_at(uint64_t address, size_t size)
{
	void *got = mmap((void *)address, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (got == MAP_FAILED)
		return NULL;
	if (got != (void *)address) { /* kernels before 4.17 take it for a hint */
		munmap(got, size);
		return NULL;
	}
	return got;
}

static void *owned(const struct ts_object *object, void *address, size_t size)
{
	struct mapping *mapping = address ? append(&mappings, sizeof(*mapping)) : NULL;

	if (mapping)
		*mapping = (struct mapping){ address, size, object->bias + object->dynamic };
	else if (address)
		munmap(address, size);
	return mapping ? address : NULL;
}

/* Below the object if possible: above a program, the heap grows. */
static void *map_near(const struct ts_object *object, size_t size)
{
	uint64_t low = (object->bias + object->low) / PAGE * PAGE;
	uint64_t high = (object->bias + object->high + PAGE - 1) / PAGE * PAGE;
	int64_t reach = REACH - (int64_t)(high - low) - (int64_t)size;
	void *got = NULL;

	for (int64_t away = 0; !got && away < reach && low > size + (uint64_t)away;
	     away = away ? away + away / 2 / PAGE * PAGE : 16 * PAGE)
		got = map_at(low - size - (uint64_t)away, size);
	for (int64_t away = 16 * PAGE; !got && away < reach; away += away / 2 / PAGE * PAGE)
		got = map_at(high + (uint64_t)away, size);
	return owned(object, got, size);
}

static bool is_unused(uint64_t address, size_t size)
{
	for (const uint8_t *p = (const uint8_t *)address; size--;)
		if (*p++)
			return false;
	return true;
}

/* Memory of the object's own that holds an address: what is there, or new. */
static const struct mapping *map_around(const struct ts_object *object, uint64_t address)
{
	uint64_t page = address / PAGE * PAGE;

	for (size_t i = 0; i < mappings.count; i++) {
		const struct mapping *mapping = (const struct mapping *)mappings.items + i;

		if (mapping->owner == object->bias + object->dynamic &&
		    address - (uint64_t)mapping->address < mapping->size)
			return mapping;
	}
	/* a trampoline may reach into a second page */
	if (page < PAGE || page >= HIGHEST ||
	    (!owned(object, map_at(page, 2 * PAGE), 2 * PAGE) &&
	     !owned(object, map_at(page, PAGE), PAGE)))
		return NULL;
	return (const struct mapping *)mappings.items + mappings.count - 1;
}

/*
 * A jump at the site of which only the bytes of the site itself can be chosen: the others belong to
 * what follows.  They are the high ones of the distance, so there is a stretch of 256 bytes, or of
 * 64 KB, that it can lead to; the trampoline is put there, if nothing else is.
 */
static bool pun(const struct ts_object *object, const struct ts_site *site)
{
	uint64_t from = object->bias + site->address, stretch = 1ull << 8 * (site->length - 1);
	uint8_t jump[JUMP] = { 0xe9 };
	int32_t distance;
	uint64_t first;

	if (site->length >= JUMP)
		return false;
	memcpy(jump + site->length, (void *)(from + site->length), JUMP - site->length);
	memcpy(&distance, jump + 1, sizeof(distance));
	first = from + JUMP + (uint64_t)(int64_t)distance;
	for (uint64_t target = first; target < first + stretch; target++) {
		const struct mapping *mapping = map_around(object, target);
		uint64_t end;

		if (!mapping) {
			target |= PAGE - 1;
			continue;
		}
		end = (uint64_t)mapping->address + mapping->size;
		if (target + TRAMPOLINE_SIZE > end || !is_unused(target, TRAMPOLINE_SIZE))
			continue;
		return !mprotect(mapping->address, mapping->size, PROT_READ | PROT_WRITE) &&
		       write_trampoline((uint8_t *)target, object, site, shim.clocks) &&
		       !mprotect(mapping->address, mapping->size, PROT_READ | PROT_EXEC) &&
		       write_jump(jump, from, target) && write_text(from, jump, site->length);
	}
	return false;
}

static bool jump_to(const struct ts_object *object, const struct ts_site *site,
		    const uint8_t *trampoline)
{
	uint64_t from = object->bias + site->window;
	uint8_t jump[32];

	if (site->length > sizeof(jump))
		return false;
	memset(jump, 0xcc, sizeof(jump)); /* nobody comes here; if somebody did it should be seen */
	if (site->how == TS_SITE_HOP) {
		uint64_t padding = object->bias + site->padding;

		if (!write_jump(jump, padding, (uint64_t)trampoline) ||
		    !write_text(padding, jump, JUMP))
			return false;
		jump[0] = 0xeb;
		jump[1] = (uint8_t)(padding - (from + 2));
		jump[2] = 0xcc;
	} else if (!write_jump(jump, from, (uint64_t)trampoline)) {
		return false;
	}
	return write_text(from, jump, site->length);
}

/* How many of the sites from i on share one window. */
static size_t sharing(const struct ts_site *sites, size_t count, size_t i)
{
	size_t same = 1;

	while (sites[i].how == TS_SITE_MOVED && i + same < count &&
	       sites[i + same].how == TS_SITE_MOVED && sites[i + same].window == sites[i].window)
		same++;
	return same;
}

/* Returns how many could be rewritten.  Each has room for its trampoline at its own place. */
static size_t rewrite_sites(const struct ts_object *object, const struct ts_site *sites,
			    size_t count)
{
	size_t size = (count * TRAMPOLINE_SIZE + PAGE - 1) / PAGE * PAGE, rewritten = 0, same;
	uint8_t *area = map_near(object, size);

	for (size_t i = 0; area && i < count; i += same) {
		uint8_t *trampoline = area + i * TRAMPOLINE_SIZE;

		same = sharing(sites, count, i);
		/* none begins with 0 */
		if ((sites[i].how == TS_SITE_MOVED || sites[i].how == TS_SITE_HOP) &&
		    !write_trampoline(trampoline, object, &sites[i], shim.clocks))
			*trampoline = 0;
	}
	/* the jumps last: before, there is nothing to undo */
	if (area && mprotect(area, size, PROT_READ | PROT_EXEC))
		return 0;
	for (size_t i = 0; i < count; i += same) {
		const uint8_t *trampoline = area + i * TRAMPOLINE_SIZE;

		same = sharing(sites, count, i);
		if (sites[i].how == TS_SITE_PUNNED)
			rewritten += pun(object, &sites[i]);
		else if (sites[i].how != TS_SITE_RAW && area && *trampoline &&
			 jump_to(object, &sites[i], trampoline))
			rewritten += same;
	}
	return rewritten;
}

/* Objects ----------------------------------------------------------------------------------------
 */

static void count(uint64_t *counter, size_t by)
{
	if (by)
		__atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

static void rewrite_object(struct ts_object *object)
{
	size_t room = 256, rewritten;
	struct ts_site *sites;
	struct ts_scan scan;
	long found;

	if (!ts_open_object(object) || object->left_alone)
		return;
	for (;;) {
		sites = mmap(NULL, room * sizeof(*sites), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (sites == MAP_FAILED)
			return count(&shim.task->tsc_raw, 1);
		found = ts_find_sites(object, sites, room, &scan);
		if (found <= (long)room)
			break;
		munmap(sites, room * sizeof(*sites));
		room = (size_t)found;
	}
	rewritten = found > 0 ? rewrite_sites(object, sites, (size_t)found) : 0;
	count(&shim.task->tsc_rewritten, rewritten);
	count(&shim.task->tsc_raw, (found < 0 ? 1 : (size_t)found - rewritten) + scan.undecoded);
	munmap(sites, room * sizeof(*sites));
}

/* NAME skips NAME, and NAME.anything: versions. */
static bool is_skipped(const char *path)
{
	const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;

	for (const char *name = shim.clocks->tsc_skip; *name; name += strlen(name) + 1) {
		size_t length = strlen(name);

		if (!strncmp(file, name, length) && (!file[length] || file[length] == '.'))
			return true;
	}
	return false;
}

static bool is_mapped(uint64_t address)
{
	unsigned char resident;

	return !(address % PAGE) && !mincore((void *)address, 1, &resident);
}

static void look_at_object(const struct link_map *map)
{
	struct ts_object object = { .bias = map->l_addr };
	/* the program itself has no name here */
	bool program = !*map->l_name;

	if (is_skipped(program ? (const char *)getauxval(AT_EXECFN) : map->l_name))
		return;
	if (program) {
		object.phdr = getauxval(AT_PHDR);
		object.phnum = (uint32_t)getauxval(AT_PHNUM);
	} else if (is_mapped(map->l_addr)) {
		const Elf64_Ehdr *ehdr = (const Elf64_Ehdr *)map->l_addr;

		if (memcmp(ehdr->e_ident, ELFMAG, SELFMAG))
			return;
		object.phdr = map->l_addr + ehdr->e_phoff;
		object.phnum = ehdr->e_phnum;
	} else { /* linked to another address than 0: where its headers are nobody tells */
		return count(&shim.task->tsc_raw, 1);
	}
	rewrite_object(&object);
}

static struct known *find_known(const struct link_map *map)
{
	static size_t cursor; /* they come in the order in which we met them, nearly always */
	struct known *items = known.items;

	for (size_t tried = 0; tried < known.count; tried++, cursor++) {
		struct known *item = &items[cursor % known.count];

		if (item->dynamic == (uint64_t)map->l_ld && item->bias == map->l_addr) {
			cursor = cursor % known.count + 1;
			return item;
		}
	}
	return NULL;
}

/* What the dynamic linker has unmapped takes its trampolines along. */
static void forget_unmapped(void)
{
	for (size_t i = known.count; i--;) {
		struct known *item = (struct known *)known.items + i;

		if (item->present)
			continue;
		for (size_t k = mappings.count; k--;) {
			struct mapping *mapping = (struct mapping *)mappings.items + k;

			if (mapping->owner == item->dynamic) {
				munmap(mapping->address, mapping->size);
				drop(&mappings, sizeof(*mapping), k);
			}
		}
		drop(&known, sizeof(*item), i);
	}
}

static void look_at_all(void)
{
	int saved = errno;

	for (size_t i = 0; i < known.count; i++)
		((struct known *)known.items)[i].present = false;
	/* r_next: the namespaces that dlmopen() makes, since glibc 2.35 (link.h) */
	for (struct r_debug_extended *space = (struct r_debug_extended *)debug; space;
	     space = space->base.r_version >= 2 ? space->r_next : NULL) {
		for (struct link_map *map = space->base.r_map; map; map = map->l_next) {
			struct known *item = find_known(map);

			if (!item) {
				item = append(&known, sizeof(*item));
				if (!item)
					continue;
				*item = (struct known){ (uint64_t)map->l_ld, map->l_addr, true };
				look_at_object(map);
			}
			item->present = true;
		}
	}
	forget_unmapped();
	if (memory >= 0)
		close(memory);
	memory = -1;
	errno = saved;
}

void objects_changed(void)
{
	if (debug->r_state == RT_CONSISTENT)
		look_at_all();
}

static struct r_debug *find_debug(void)
{
	const Elf64_Phdr *phdr = (const Elf64_Phdr *)getauxval(AT_PHDR);
	const Elf64_Dyn *dynamic = NULL;
	uint64_t bias = 0;

	for (unsigned long i = 0; i < getauxval(AT_PHNUM); i++) {
		if (phdr[i].p_type == PT_PHDR)
			bias = (uint64_t)phdr - phdr[i].p_vaddr;
		else if (phdr[i].p_type == PT_DYNAMIC)
			dynamic = (const Elf64_Dyn *)(bias + phdr[i].p_vaddr);
	}
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++)
		if (dynamic->d_tag == DT_DEBUG)
			return (struct r_debug *)dynamic->d_un.d_ptr;
	return NULL;
}

/* False if there is no room for a jump in the dynamic linker's function, or something else is. */
static bool hear_of_objects(void)
{
	static const uint8_t endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa }, ret = 0xc3;
	static const uint8_t filler[] = { 0x66, 0x0f, 0x90, 0xcc };
	const uint8_t *function = (const uint8_t *)debug->r_brk;
	size_t body = memcmp(function, endbr64, sizeof(endbr64)) ? 0 : sizeof(endbr64);
	uint8_t jump[JUMP];

	/* between it and the next one, aligned to 16 bytes both, there are nops of some length */
	if ((uint64_t)function % 16 || function[body] != ret ||
	    (body + 1 < JUMP && !memchr(filler, function[body + 1], sizeof(filler))))
		return false;
	return write_jump(jump, (uint64_t)function, (uint64_t)tell_of_objects) &&
	       write_text((uint64_t)function, jump, sizeof(jump));
}

void rewrite_tsc(void)
{
	timeshim_clocks_1 = (const struct timeshim_clocks_1 *)shim.clocks;
	if (!shim.clocks->tsc_patch)
		return;
	debug = find_debug();
	if (!debug || !debug->r_brk || !hear_of_objects())
		count(&shim.task->tsc_raw, 1); /* whatever is loaded later */
	if (debug)
		look_at_all();
}
