/* SPDX-License-Identifier: GPL-2.0-only */
/* cuda-ranges-VPID.txt in the image folder: the memory in which the driver parked a process's GPU data. */
#ifndef GPUCKPT_CUDA_RANGES_H
#define GPUCKPT_CUDA_RANGES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "gpuckpt_cuda_proc.h"

/* Writes the file of pid, one "start-end" (hexadecimal) a line. 0, or -1 with an error logged. */
int gc_ranges_write(pid_t pid, const struct range_list *ranges);

/* Writes what pid's memory has gained since before. The number of bytes; what cannot be told is logged and left out. */
uint64_t gc_ranges_record(pid_t pid, const struct range_list *before);

/* True when the images hold the file of pid; its total goes to bytes. */
bool gc_ranges_read(pid_t pid, uint64_t *bytes);

#endif
