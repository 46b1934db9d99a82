/* SPDX-License-Identifier: GPL-2.0-only */
/* Requests to the staging library in a program (gpuckpt_cuda_staging_wire.h). No CRIU in here. */
#ifndef GPUCKPT_CUDA_STAGING_CLIENT_H
#define GPUCKPT_CUDA_STAGING_CLIENT_H

#include <stdbool.h>
#include <sys/types.h>

#include "gpuckpt_cuda_staging_wire.h"

#define GC_STAGING_FILE "gpu-staged-%d.img" /* in the image folder; the pid that the program itself sees */

/* Our copy of the program's socket, or -1 where the library is not in the program, or has nothing to keep. */
int gc_staging_connect(pid_t pid);

/* Asks; file goes along unless it is -1. False, with errno, when the request could not be sent. */
bool gc_staging_ask(int socket, const struct gs_request *request, int file);

/* Waits for the answer to the request of that number. False when there is none until limit_ms (-1: for ever). */
bool gc_staging_answer(int socket, uint32_t number, int limit_ms, struct gs_answer *answer);

#endif
