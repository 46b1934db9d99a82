/* SPDX-License-Identifier: GPL-2.0-only */
#include "gpuckpt_cuda_proc.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NVIDIA_DEVICE_PREFIX "/dev/nvidia"

static FILE *open_proc_file(pid_t pid, const char *name)
{
	char path[NAME_MAX + 64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return fopen(path, "re");
}

void gc_proc_title(pid_t pid, char *title, size_t title_size)
{
	FILE *words = open_proc_file(pid, "cmdline");
	size_t length = words ? fread(title, 1, title_size - 1, words) : 0;

	if (words)
		fclose(words);
	title[length] = '\0'; /* words end with a NUL: what stands first is the title */
	if (!title[0])
		snprintf(title, title_size, "?");
}

static DIR *open_proc_folder(pid_t pid, const char *name)
{
	char path[NAME_MAX + 64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return opendir(path);
}

static int append_pid(struct pid_list *list, pid_t pid)
{
	pid_t *grown = realloc(list->pids, (list->count + 1) * sizeof(*grown));

	if (!grown)
		return -1;
	grown[list->count++] = pid;
	list->pids = grown;
	return 0;
}

static int append_children_of_thread(pid_t pid, const char *tid, struct pid_list *list)
{
	char name[NAME_MAX + 32];
	FILE *children;
	int child, ret = 0;

	snprintf(name, sizeof(name), "task/%s/children", tid);
	children = open_proc_file(pid, name);
	if (!children)
		return 0;
	while (!ret && fscanf(children, "%d", &child) == 1)
		ret = append_pid(list, child);
	fclose(children);
	return ret;
}

static int append_children(pid_t pid, struct pid_list *list)
{
	DIR *tasks = open_proc_folder(pid, "task");
	struct dirent *entry;
	int ret = 0;

	if (!tasks)
		return 0;
	while (!ret && (entry = readdir(tasks)))
		if (entry->d_name[0] != '.')
			ret = append_children_of_thread(pid, entry->d_name, list);
	closedir(tasks);
	return ret;
}

int gc_proc_descendants(pid_t pid, struct pid_list *list)
{
	size_t next = list->count;

	if (append_pid(list, pid))
		return -1;
	/* The list is its own queue: the children of each entry are appended behind it. */
	for (; next < list->count; next++)
		if (append_children(list->pids[next], list))
			return -1;
	return 0;
}

bool gc_proc_maps_libcuda(pid_t pid)
{
	FILE *maps = open_proc_file(pid, "maps");
	char *line = NULL;
	size_t size = 0;
	bool found = false;

	if (!maps)
		return false;
	while (!found && getline(&line, &size, maps) > 0)
		found = strstr(line, "/libcuda.so") || strstr(line, NVIDIA_DEVICE_PREFIX);
	free(line);
	fclose(maps);
	return found;
}

bool gc_proc_holds_gpu_device(pid_t pid, char *device, size_t device_size)
{
	DIR *fds = open_proc_folder(pid, "fd");
	struct dirent *entry;
	bool found = false;

	if (!fds)
		return false;
	while (!found && (entry = readdir(fds))) {
		ssize_t len = readlinkat(dirfd(fds), entry->d_name, device, device_size - 1);

		if (len < 0)
			continue;
		device[len] = '\0';
		found = !strncmp(device, NVIDIA_DEVICE_PREFIX, strlen(NVIDIA_DEVICE_PREFIX));
	}
	closedir(fds);
	return found;
}

/* The last number of a line such as "NSpid:\t4711\t12". */
static long last_number(char *text)
{
	long number = -1;
	char *end;

	for (;;) {
		long next = strtol(text, &end, 10);

		if (end == text)
			return number;
		number = next;
		text = end;
	}
}

long gc_proc_status_number(pid_t pid, const char *key)
{
	FILE *status = open_proc_file(pid, "status");
	size_t key_len = strlen(key), size = 0;
	char *line = NULL;
	long number = -1;

	if (!status)
		return -1;
	while (number < 0 && getline(&line, &size, status) > 0)
		if (!strncmp(line, key, key_len) && line[key_len] == ':')
			number = last_number(line + key_len + 1);
	free(line);
	fclose(status);
	return number;
}

static int append_range(struct range_list *list, uint64_t start, uint64_t end)
{
	struct address_range *last = list->count ? &list->ranges[list->count - 1] : NULL;
	struct address_range *grown;

	if (last && last->end == start) {
		last->end = end;
		return 0;
	}
	grown = realloc(list->ranges, (list->count + 1) * sizeof(*grown));
	if (!grown)
		return -1;
	grown[list->count++] = (struct address_range){start, end};
	list->ranges = grown;
	return 0;
}

/* True for "START-END rw?p 00000000 00:00 0" without a name: memory that a driver could have parked data in. */
static bool parse_anonymous(const char *line, struct address_range *range)
{
	char permissions[5], name[2] = "";
	unsigned long inode;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*x %*x:%*x %lu %1s", &range->start, &range->end, permissions,
		   &inode, name) < 4)
		return false;
	return permissions[0] == 'r' && permissions[1] == 'w' && permissions[3] == 'p' && inode == 0 && !name[0];
}

int gc_proc_anonymous_ranges(pid_t pid, struct range_list *list)
{
	FILE *maps = open_proc_file(pid, "maps");
	struct address_range range;
	char *line = NULL;
	size_t size = 0;
	int ret = 0;

	list->count = 0;
	if (!maps)
		return -1;
	while (!ret && getline(&line, &size, maps) > 0)
		if (parse_anonymous(line, &range))
			ret = append_range(list, range.start, range.end);
	free(line);
	fclose(maps);
	return ret;
}

int gc_range_difference(const struct range_list *after, const struct range_list *before, struct range_list *out)
{
	size_t a, b = 0;

	out->count = 0;
	for (a = 0; a < after->count; a++) {
		uint64_t start = after->ranges[a].start, end = after->ranges[a].end;

		while (b < before->count && before->ranges[b].end <= start)
			b++;
		/* A range of before may reach into the next one of after: look ahead with an index of our own. */
		for (size_t cut = b; cut < before->count && before->ranges[cut].start < end; cut++) {
			if (before->ranges[cut].start > start && append_range(out, start, before->ranges[cut].start))
				return -1;
			if (before->ranges[cut].end > start)
				start = before->ranges[cut].end;
		}
		if (start < end && append_range(out, start, end))
			return -1;
	}
	return 0;
}

uint64_t gc_range_total_bytes(const struct range_list *list)
{
	uint64_t total = 0;

	for (size_t n = 0; n < list->count; n++)
		total += list->ranges[n].end - list->ranges[n].start;
	return total;
}
