/* SPDX-License-Identifier: GPL-2.0-only */
/* What /proc tells about a process that may use a GPU. No CRIU in here. */
#ifndef GPUCKPT_CUDA_PROC_H
#define GPUCKPT_CUDA_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A growing list of pids. Zero it before the first use; free pids after the last. */
struct pid_list {
	pid_t *pids;
	size_t count;
};

struct address_range {
	uint64_t start;
	uint64_t end; /* exclusive */
};

/* Sorted, disjoint, neighbours joined. Zero it before the first use; free ranges after the last. */
struct range_list {
	struct address_range *ranges;
	size_t count;
};

/* Appends pid and all that descend from it, parents first. 0, or -1 when memory is short; who vanished is left out. */
int gc_proc_descendants(pid_t pid, struct pid_list *list);

/* True when pid has the driver's library mapped: only then is it worth to ask the driver. */
bool gc_proc_maps_libcuda(pid_t pid);

/* True when pid has an NVIDIA device open; its path goes to device. */
bool gc_proc_holds_gpu_device(pid_t pid, char *device, size_t device_size);

/* A number from /proc/PID/status ("Tgid", "TracerPid"), the last one of several ("NSpid"), or -1. */
long gc_proc_status_number(pid_t pid, const char *key);

/*
 * What pid calls itself: the first word of its command line, which tells the ranks of a server apart where they set it
 * (VLLM::Worker_TP1). "?" where it cannot be read.
 */
void gc_proc_title(pid_t pid, char *title, size_t title_size);

/* The private, writable, anonymous memory of pid. 0, or -1 with errno set. */
int gc_proc_anonymous_ranges(pid_t pid, struct range_list *list);

/* The parts of after that before does not cover. 0, or -1 when memory is short. */
int gc_range_difference(const struct range_list *after, const struct range_list *before, struct range_list *out);

uint64_t gc_range_total_bytes(const struct range_list *list);

#endif
