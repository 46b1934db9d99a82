/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Staging: the contents of all regions go to a file and their physical memory is given back. And the opposite.
 *
 * Nothing is taken away before all of it is written, so whatever fails before that leaves the program as it was. While
 * the memory is away the gate stays closed. It stays closed, too, when the memory cannot be brought back: a program
 * never goes on with wrong data.
 */
#ifndef GPUCKPT_STAGING_STAGE_H
#define GPUCKPT_STAGING_STAGE_H

#include "gpuckpt_cuda_staging_wire.h"

/* On the library's own thread alone. file is open for reading and writing; the answer says what came of it. */
void gs_stage(int file, unsigned int limit_ms, struct gs_answer *answer);
void gs_bring_back(int file, struct gs_answer *answer);
void gs_ask(struct gs_answer *answer);

/* Why staging would not be safe in this program: something passes the gate by. The first reason counts. */
void gs_stage_forbid(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
