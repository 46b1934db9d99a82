/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_MEMORY_PLAN_RESTORER_H
#define GPUCKPT_MEMORY_PLAN_RESTORER_H

struct memory_plan;
struct task_restore_args;

/* Maps what the plan maps, and reads the rest if several threads shall; else that is left to the caller. */
extern int memory_plan_restore(struct task_restore_args *args);

/* Logs what was mapped and read, and how long it took. */
extern void memory_plan_report(const struct memory_plan *plan);

#endif
