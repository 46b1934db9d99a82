/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef GPUCKPT_IMAGE_VIEW_H
#define GPUCKPT_IMAGE_VIEW_H

#include <stdbool.h>
#include <stddef.h>

/*
 * A second way to the images, for mapping them. A file mapped through a mount with noexec can never become executable
 * (mprotect: EACCES), which anonymous memory can; checkpoint stores are mounted so. The view is a detached clone of
 * that mount, seen by nobody else, without noexec.
 */

/* Makes the view if mapping is on and the folder's mount is noexec; without one, the folder itself is used. */
extern void image_view_open(int images_dfd);

extern void image_view_close(void);

/* Opens a file of the image folder for mapping. Returns -1 with errno set. */
extern int image_view_open_file(const char *name);

/* The path of the root of the mount that the folder lies on; -1: not to be found out. */
extern int image_view_mountpoint(int dfd, char *path, size_t size);

/* Whether memory mapped from fd may become executable later. */
extern bool image_view_is_executable(int fd);

#endif
