/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_IMAGE_FILE_H
#define GPUCKPT_IMAGE_FILE_H

#include <sys/types.h>

/* openat() of an image; with O_TRUNC a file of that name is replaced, never truncated. Returns -1 with errno set. */
extern int image_file_open(int dfd, const char *path, int flags, mode_t mode);

#endif
