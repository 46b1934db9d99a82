/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The switches of the library, from the environment of the program (docs/staging.md). A wrong value is told on standard
 * error, and the library stays out of the program's way.
 */
#ifndef GPUCKPT_STAGING_SETTINGS_H
#define GPUCKPT_STAGING_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>

struct gs_settings {
	bool on;
	size_t min_bytes;     /* smaller allocations stay the driver's */
	unsigned int threads; /* for each GPU, while memory travels */
};

const struct gs_settings *gs_settings(void);

/* One line on standard error. */
void gs_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
