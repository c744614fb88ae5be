// SPDX-License-Identifier: MIT
/*
 * scan.c - maps an ELF file as the dynamic linker would, but read-only, and runs nothing of it.
 *
 * Files may be anything: whatever their headers claim is checked against their size, since to
 * read a mapping beyond the end of its file raises SIGBUS.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scan.h"

#define PAGE 4096ull
#define LARGEST_OBJECT (1ull << 36)

static bool map_segment(int fd, const Elf64_Phdr *phdr, uint64_t bias)
{
	uint64_t skip = phdr->p_vaddr % PAGE;

	return !phdr->p_filesz ||
	       mmap((void *)(bias + phdr->p_vaddr - skip), phdr->p_filesz + skip, PROT_READ,
		    MAP_PRIVATE | MAP_FIXED, fd, (off_t)(phdr->p_offset - skip)) != MAP_FAILED;
}

/* The program headers are copied: they need not lie in what is loaded. */
static Elf64_Phdr *read_headers(int fd, const Elf64_Ehdr *ehdr)
{
	size_t size = ehdr->e_phnum * sizeof(Elf64_Phdr);
	Elf64_Phdr *phdr =
		mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (phdr == MAP_FAILED)
		return NULL;
	if (pread(fd, phdr, size, (off_t)ehdr->e_phoff) == (ssize_t)size)
		return phdr;
	munmap(phdr, size);
	return NULL;
}

static bool is_sound(const Elf64_Phdr *phdr, uint64_t file_size)
{
	return phdr->p_type != PT_LOAD ||
	       (phdr->p_filesz <= phdr->p_memsz && phdr->p_memsz < LARGEST_OBJECT &&
		phdr->p_offset <= file_size && phdr->p_filesz <= file_size - phdr->p_offset &&
		phdr->p_vaddr % PAGE == phdr->p_offset % PAGE && phdr->p_vaddr < 1ull << 47);
}

int ts_map_file(int fd, struct ts_object *object)
{
	uint64_t low = UINT64_MAX, high = 0;
	bool sound = true;
	Elf64_Phdr *phdr;
	Elf64_Ehdr ehdr;
	struct stat st;
	void *room;

	*object = (struct ts_object){ 0 };
	if (fstat(fd, &st))
		return -errno;
	if (pread(fd, &ehdr, sizeof(ehdr), 0) != sizeof(ehdr) ||
	    memcmp(ehdr.e_ident, ELFMAG, SELFMAG) || ehdr.e_ident[EI_CLASS] != ELFCLASS64 ||
	    ehdr.e_machine != EM_X86_64 || (ehdr.e_type != ET_DYN && ehdr.e_type != ET_EXEC) ||
	    ehdr.e_phentsize != sizeof(Elf64_Phdr) || !ehdr.e_phnum)
		return -ENOEXEC;
	phdr = read_headers(fd, &ehdr);
	if (!phdr)
		return -ENOEXEC;
	object->phdr = (uint64_t)phdr;
	object->phnum = ehdr.e_phnum;
	for (size_t i = 0; i < ehdr.e_phnum; i++) {
		sound &= is_sound(&phdr[i], (uint64_t)st.st_size);
		if (phdr[i].p_type == PT_LOAD && phdr[i].p_vaddr < low)
			low = phdr[i].p_vaddr / PAGE * PAGE;
		if (phdr[i].p_type == PT_LOAD && phdr[i].p_vaddr + phdr[i].p_memsz > high)
			high = phdr[i].p_vaddr + phdr[i].p_memsz;
	}
	if (!sound || low >= high || high - low > LARGEST_OBJECT) {
		ts_unmap_file(object);
		return -ENOEXEC;
	}
	room = mmap(NULL, high - low, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		    0);
	if (room == MAP_FAILED) {
		ts_unmap_file(object);
		return -ENOMEM;
	}
	object->bias = (uint64_t)room - low;
	object->low = low;
	object->high = high;
	for (size_t i = 0; i < ehdr.e_phnum; i++)
		if (phdr[i].p_type == PT_LOAD)
			sound &= map_segment(fd, &phdr[i], object->bias);
	/* what is not readable when loaded is not looked at in a process either */
	if (!sound || !ts_open_object(object)) {
		ts_unmap_file(object);
		return -ENOEXEC;
	}
	return 0;
}

void ts_unmap_file(struct ts_object *object)
{
	if (object->high > object->low)
		munmap((void *)((object->bias + object->low) / PAGE * PAGE),
		       object->high - object->low / PAGE * PAGE);
	munmap((void *)object->phdr, object->phnum * sizeof(Elf64_Phdr));
	*object = (struct ts_object){ 0 };
}
