// SPDX-License-Identifier: GPL-2.0-only
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "types.h"
#include "image-view.h"
#include "log.h"
#include "mapped-base.h"
#include "page.h"
#include "servicefd.h"
#include "util.h"
#include "xmalloc.h"

#define SAMPLED_PAGES 256

static bool lists_expected;

/* The files next to the images that this dump wrote or refers to. */
static struct kept_name {
	char text[MAPPED_BASE_NAME_LEN];
} * kept_names;
static size_t kept_names_n;

void base_lists_expect(void)
{
	lists_expected = true;
}

int array_grow(void *array, size_t n, size_t element_size)
{
	void **slot = array, *larger;

	if (n & (n - 1) || n == 1)
		return 0;
	larger = xrealloc(*slot, (n ? 2 * n : 2) * element_size);
	if (!larger)
		return -1;
	*slot = larger;
	return 0;
}

static uint64_t fnv1a(uint64_t sum, const void *data, size_t len)
{
	const uint64_t *word = data;

	for (; len >= sizeof(*word); len -= sizeof(*word))
		sum = (sum ^ *word++) * 1099511628211ULL;
	return sum;
}

int base_identify(int fd, struct base_identity *identity)
{
	uint64_t page[PAGE_SIZE / sizeof(uint64_t)], sum = 14695981039346656037ULL;
	unsigned long pages, i;
	struct stat st;

	if (fstat(fd, &st)) {
		pr_perror("Can't stat a base image");
		return -1;
	}
	pages = st.st_size / PAGE_SIZE;
	for (i = 0; i < SAMPLED_PAGES && pages; i++) {
		off_t off = (pages - 1) * i / (SAMPLED_PAGES - 1) * PAGE_SIZE;

		if (pread(fd, page, PAGE_SIZE, off) != PAGE_SIZE) {
			pr_perror("Can't read a base image");
			return -1;
		}
		sum = fnv1a(sum, page, PAGE_SIZE);
	}
	identity->size = st.st_size;
	identity->modified_s = st.st_mtim.tv_sec;
	identity->modified_ns = st.st_mtim.tv_nsec;
	identity->digest = fnv1a(sum, &identity->size, sizeof(identity->size));
	return 0;
}

static bool same_identity(const struct base_identity *a, const struct base_identity *b)
{
	return a->size == b->size && a->modified_s == b->modified_s && a->modified_ns == b->modified_ns &&
	       a->digest == b->digest;
}

int base_open(const struct base_file *file)
{
	struct base_identity found;
	int fd = image_view_open_file(file->name);

	if (fd < 0) {
		pr_perror(
			"The base image %s of this delta checkpoint is missing; put it back or use an older checkpoint",
			file->name);
		return -1;
	}
	if (base_identify(fd, &found))
		goto err;
	if (!same_identity(&found, &file->identity)) {
		pr_err("The base image %s of this delta checkpoint has changed (a copy must keep its time of "
		       "modification); "
		       "use an older checkpoint\n",
		       file->name);
		goto err;
	}
	return fd;
err:
	close(fd);
	return -1;
}

int base_list_add_range(struct base_list *list, const struct base_range *range)
{
	if (array_grow(&list->ranges, list->ranges_n, sizeof(*range)))
		return -1;
	list->ranges[list->ranges_n++] = *range;
	return 0;
}

static int add_file(struct base_list *list, const struct base_file *file)
{
	if (array_grow(&list->files, list->files_n, sizeof(*file)))
		return -1;
	list->files[list->files_n++] = *file;
	return 0;
}

int base_list_index(struct base_list *list, const struct base_file *file)
{
	size_t i;

	for (i = 0; i < list->files_n; i++)
		if (!strcmp(list->files[i].name, file->name))
			return i;
	return add_file(list, file) ? -1 : (int)i;
}

void base_list_free(struct base_list *list)
{
	xfree(list->files);
	xfree(list->ranges);
	memset(list, 0, sizeof(*list));
}

static void list_name(int pid, char name[MAPPED_BASE_NAME_LEN])
{
	snprintf(name, MAPPED_BASE_NAME_LEN, MAPPED_BASE_PREFIX "%d.txt", pid);
}

static FILE *open_list(int pid, int flags, const char *mode)
{
	char name[MAPPED_BASE_NAME_LEN];
	FILE *f = NULL;
	int fd;

	list_name(pid, name);
	fd = openat(get_service_fd(IMG_FD_OFF), name, flags | O_CLOEXEC, 0600);
	if (fd >= 0)
		f = fdopen(fd, mode);
	if (!f && errno != ENOENT)
		pr_perror("Can't open %s", name);
	if (!f && fd >= 0)
		close(fd);
	return f;
}

static int parse_line(struct base_list *list, const char *line)
{
	struct base_file file = {};
	struct base_range range;
	unsigned index;

	if (sscanf(line, "base %u %lu %ld %ld %" SCNx64 " %63s", &index, &file.identity.size, &file.identity.modified_s,
		   &file.identity.modified_ns, &file.identity.digest, file.name) == 6 &&
	    index == list->files_n && !strchr(file.name, '/'))
		return add_file(list, &file);
	if (sscanf(line, "range %lx %lx %u %lx", &range.start, &range.end, &range.base, (unsigned long *)&range.off) ==
		    4 &&
	    range.start < range.end && range.base < list->files_n &&
	    range.off + (range.end - range.start) <= list->files[range.base].identity.size)
		return base_list_add_range(list, &range);
	pr_err("The list of base images holds a wrong line: %s", line);
	return -1;
}

int base_list_read(int pid, struct base_list *list)
{
	char line[256];
	int ret = 0;
	FILE *f;

	memset(list, 0, sizeof(*list));
	if (!lists_expected)
		return 0;
	f = open_list(pid, O_RDONLY, "r");
	if (!f)
		return errno == ENOENT ? 0 : -1;
	while (!ret && fgets(line, sizeof(line), f))
		ret = parse_line(list, line);
	fclose(f);
	if (ret)
		base_list_free(list);
	return ret;
}

static bool is_kept(const char *name)
{
	size_t i;

	for (i = 0; i < kept_names_n; i++)
		if (!strcmp(kept_names[i].text, name))
			return true;
	return false;
}

static int keep_name(const char *name)
{
	if (is_kept(name))
		return 0;
	if (array_grow(&kept_names, kept_names_n, sizeof(*kept_names)))
		return -1;
	snprintf(kept_names[kept_names_n++].text, sizeof(kept_names->text), "%s", name);
	return 0;
}

static int keep_names(int pid, const struct base_list *list)
{
	char name[MAPPED_BASE_NAME_LEN];
	size_t i;

	list_name(pid, name);
	if (keep_name(name))
		return -1;
	for (i = 0; i < list->files_n; i++)
		if (keep_name(list->files[i].name))
			return -1;
	return 0;
}

void base_lists_remove_stale(void)
{
	int images = get_service_fd(IMG_FD_OFF);
	int fd = openat(images, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *folder = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!folder) {
		pr_pwarn("gpuckpt: can't look for base images of older checkpoints");
		close_safe(&fd);
		return;
	}
	while ((entry = readdir(folder)))
		if (!strncmp(entry->d_name, MAPPED_BASE_PREFIX, strlen(MAPPED_BASE_PREFIX)) &&
		    !is_kept(entry->d_name) && unlinkat(images, entry->d_name, 0))
			pr_pwarn("gpuckpt: can't remove %s of an older checkpoint", entry->d_name);
	closedir(folder);
}

int base_list_write(int pid, const struct base_list *list)
{
	bool failed;
	size_t i;
	FILE *f;

	if (keep_names(pid, list))
		return -1;
	f = open_list(pid, O_WRONLY | O_CREAT | O_TRUNC, "w");
	if (!f)
		return -1;
	for (i = 0; i < list->files_n; i++) {
		const struct base_identity *id = &list->files[i].identity;

		fprintf(f, "base %zu %lu %ld %ld %016" PRIx64 " %s\n", i, id->size, id->modified_s, id->modified_ns,
			id->digest, list->files[i].name);
	}
	for (i = 0; i < list->ranges_n; i++) {
		const struct base_range *r = &list->ranges[i];

		fprintf(f, "range %lx %lx %u %lx\n", r->start, r->end, r->base, (unsigned long)r->off);
	}
	failed = ferror(f);
	if (fclose(f) || failed) {
		pr_perror("Can't write the list of base images");
		return -1;
	}
	return 0;
}
