// SPDX-License-Identifier: GPL-2.0-only
/*
 * An image that is opened for writing is a new file. The one that had its name may be mapped by a process that was
 * restored from it, or linked by another checkpoint. Truncating it would take the memory of both away.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image-file.h"
#include "image-mappings.h"

/* Only files and links are replaced: whoever reads the images from a fifo or a device gets them as with stock CRIU. */
static int remove_older(int dfd, const char *path)
{
	struct stat st;

	if (fstatat(dfd, path, &st, AT_SYMLINK_NOFOLLOW))
		return errno == ENOENT ? 0 : -1;
	if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode))
		return 0;
	if (S_ISREG(st.st_mode) && image_mappings_keep_replaced(dfd, path))
		return -1;
	return unlinkat(dfd, path, 0);
}

int image_file_open(int dfd, const char *path, int flags, mode_t mode)
{
	if (flags & O_TRUNC && remove_older(dfd, path))
		return -1;
	return openat(dfd, path, flags, mode);
}
