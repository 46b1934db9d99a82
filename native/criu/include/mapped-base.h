/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_MAPPED_BASE_H
#define GPUCKPT_MAPPED_BASE_H

/*
 * A delta checkpoint keeps the page images that the process was mapped from, its bases, and refers to them. The file
 * mapped-base-<pid>.txt next to the images holds lines
 *
 *   base <index> <size> <modified, s> <modified, ns> <digest> <file>
 *   range <start> <end> <index of its base> <offset>
 *
 * where the digest samples the file, because reading all of it would cost what the delta saves.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MAPPED_BASE_PREFIX "mapped-base-"
#define MAPPED_BASE_NAME_LEN 64

struct base_identity {
	unsigned long size;
	long modified_s;
	long modified_ns;
	uint64_t digest;
};

struct base_file {
	struct base_identity identity;
	char name[MAPPED_BASE_NAME_LEN];
};

struct base_range {
	unsigned long start;
	unsigned long end;
	unsigned base;
	off_t off;
};

struct base_list {
	struct base_file *files;
	size_t files_n;
	struct base_range *ranges;
	size_t ranges_n;
};

/* Takes the identity of an open file; -1 with a message. */
extern int base_identify(int fd, struct base_identity *identity);

/* The images are a delta. Without this call, lists next to them are an older checkpoint's, and not read. */
extern void base_lists_expect(void);

/* Removes from the image folder the bases and lists that base_list_write() was not called with. */
extern void base_lists_remove_stale(void);

/* 0, also where there is no list and it stays empty; -1 with a message. */
extern int base_list_read(int pid, struct base_list *list);
extern int base_list_write(int pid, const struct base_list *list);
extern void base_list_free(struct base_list *list);

extern int base_list_add_range(struct base_list *list, const struct base_range *range);

/* The index of the file in the list, where it is added if it is new; -1: out of memory. */
extern int base_list_index(struct base_list *list, const struct base_file *file);

/* Opens a base for mapping and makes sure that it is the file that was checkpointed; -1 with a message. */
extern int base_open(const struct base_file *file);

/* Makes room for one more element in an array that doubles; -1: out of memory. */
extern int array_grow(void *array, size_t n, size_t element_size);

#endif
