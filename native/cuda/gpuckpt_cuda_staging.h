/* SPDX-License-Identifier: GPL-2.0-only */
/* GPU memory that the programs themselves put aside, with libgpuckpt_staging.so, so that the driver need not carry it.
 */
#ifndef GPUCKPT_CUDA_STAGING_H
#define GPUCKPT_CUDA_STAGING_H

#include "gpuckpt_cuda_tasks.h"

/*
 * All tasks put their memory aside that can, each into a file of the image folder. They run, and are not locked yet.
 * The driver carries what a task does not. -1 where a task is parked: its memory is in a file that the images would
 * lack.
 */
int gc_staging_put_aside(void);

/*
 * After a dump that failed or leaves the tree running: asks the tasks to take their memory back as soon as they run.
 * Nobody waits for it here, since they are frozen.
 */
void gc_staging_put_back(void);

#endif
