/* SPDX-License-Identifier: GPL-2.0-only */
/* The switches of the CUDA plugin, as the environment gives them (docs/native-cuda.md). */
#ifndef GPUCKPT_CUDA_OPTIONS_H
#define GPUCKPT_CUDA_OPTIONS_H

#include <stdbool.h>

#include "gpuckpt_cuda_driver.h"

enum gc_backend { BACKEND_AUTO, BACKEND_DRIVER_API, BACKEND_CUDA_CHECKPOINT };

struct gc_options {
	enum gc_backend backend; /* auto becomes cuda-checkpoint when the driver cannot serve */
	unsigned int timeout_s;  /* 0: without limit */
	unsigned int pool_wait_s;
	bool pool;
	bool pool_contexts;
	bool staging; /* by programs that have libgpuckpt_staging.so */
	struct gc_device_map map;
};

extern struct gc_options gc_options;

/* Reads all of them. 0, or -1 with an error logged that names the wrong one. */
int gc_options_read(void);

#endif
