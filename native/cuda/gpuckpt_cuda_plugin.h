/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the patches call from CRIU's CUDA plugin, and what our side takes from it.
 * Symbols of our side begin with gc_ (gpuckpt, CUDA). Its files begin with gpuckpt_cuda_, since they are built among
 * CRIU's.
 */
#ifndef GPUCKPT_CUDA_PLUGIN_H
#define GPUCKPT_CUDA_PLUGIN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include <compel/infect.h>

/* Returned instead of a result: CRIU's own code, which runs cuda-checkpoint, shall handle this. */
#define GPUCKPT_CUDA_PASS 1

/*
 * Reads the switches; at the restore stage starts the context pool.
 * 0: the driver API is used (or tried first), GPUCKPT_CUDA_PASS: cuda-checkpoint is, -1: a switch is wrong.
 */
int gc_init(int stage);
void gc_fini(int stage, int failed);

/* The hooks. 0, -1 (the dump or restore must fail), or GPUCKPT_CUDA_PASS. */
int gc_pause(pid_t pid);
int gc_checkpoint(pid_t pid);
int gc_resume(pid_t pid);

/* What the plugin's init returns when it cannot serve: 0 for a dump, -1 for a restore, whose images need it. */
int gc_unavailable(int stage);

/* -1 with an error logged when pid has a GPU open that nobody checkpointed, else 0. */
int gc_refuse_unsaved(pid_t pid);

/* -1 with an error logged when pid, unknown to the driver, was a CUDA process at the dump, else 0. */
int gc_refuse_lost(pid_t pid);

/* Around one run of cuda-checkpoint: logs its span, and records the memory that a checkpoint parks data in. */
void gc_action_begin(const char *action, pid_t pid, struct timespec *start);
void gc_action_end(const char *action, pid_t pid, const struct timespec *start, int status);

/* Logs one span. note is one word. */
void gc_span(const char *name, pid_t pid, const struct timespec *start, const struct timespec *end, uint64_t bytes,
	     const char *note);

/* From cuda_plugin.c. */
int cuda_checkpoint_supports_flag(const char *flag);
int resume_restore_thread(int restore_tid, k_rtsigset_t *save_sigset);
int interrupt_restore_thread(int restore_tid, k_rtsigset_t *restore_sigset);

#endif
