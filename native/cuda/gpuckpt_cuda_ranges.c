/* SPDX-License-Identifier: GPL-2.0-only */
#define _GNU_SOURCE
#include "criu-log.h"
#include "plugin.h"
#include "cr_options.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cuda-ranges.h"
#include "gpuckpt_cuda_ranges.h"

#undef LOG_PREFIX
#define LOG_PREFIX "gpuckpt: "

/* Opens the file of pid, which is named by the pid that the process itself sees: that one survives a restore. */
static FILE *open_ranges(pid_t pid, int flags, const char *mode)
{
	char name[64];
	FILE *file;
	int fd;

	snprintf(name, sizeof(name), CUDA_RANGES_FILE, (int)gc_proc_status_number(pid, "NSpid"));
	fd = openat(criu_get_image_dir(), name, flags | O_CLOEXEC, 0600);
	if (fd < 0)
		return NULL;
	file = fdopen(fd, mode);
	if (!file)
		close(fd);
	return file;
}

int gc_ranges_write(pid_t pid, const struct range_list *ranges)
{
	FILE *file;
	bool written;

	/* A streamed image has no folder to put another file in. */
	if (opts.stream)
		return 0;

	file = open_ranges(pid, O_WRONLY | O_CREAT | O_TRUNC, "w");
	if (!file) {
		pr_perror("Cannot create cuda-ranges of pid %d in the image folder", pid);
		return -1;
	}
	for (size_t n = 0; n < ranges->count; n++)
		fprintf(file, CUDA_RANGES_LINE "\n", (unsigned long)ranges->ranges[n].start,
			(unsigned long)ranges->ranges[n].end);
	written = !ferror(file);
	written = !fclose(file) && written;
	if (!written) {
		pr_perror("Cannot write cuda-ranges of pid %d", pid);
		return -1;
	}
	return 0;
}

uint64_t gc_ranges_record(pid_t pid, const struct range_list *before)
{
	struct range_list after = {}, parked = {};
	uint64_t bytes = 0;

	if (gc_proc_anonymous_ranges(pid, &after) || gc_range_difference(&after, before, &parked)) {
		pr_warn("Cannot tell which memory of pid %d the driver parked GPU data in\n", pid);
		parked.count = 0;
	}
	bytes = gc_range_total_bytes(&parked);
	gc_ranges_write(pid, &parked);
	free(after.ranges);
	free(parked.ranges);
	return bytes;
}

bool gc_ranges_read(pid_t pid, uint64_t *bytes)
{
	FILE *file = opts.stream ? NULL : open_ranges(pid, O_RDONLY, "r");
	unsigned long start, end;

	*bytes = 0;
	if (!file)
		return false;
	while (fscanf(file, CUDA_RANGES_LINE, &start, &end) == 2)
		*bytes += end - start;
	fclose(file);
	return true;
}
