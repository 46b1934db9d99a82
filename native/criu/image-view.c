// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdbool.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "types.h"
#include "image-view.h"
#include "log.h"
#include "servicefd.h"
#include "switches.h"

/* <linux/mount.h> and <sys/mount.h> exclude each other on some distributions. */
#define VIEW_OPEN_TREE_CLONE 1
#define VIEW_ATTR_NOEXEC 0x8

struct view_attr {
	uint64_t attr_set;
	uint64_t attr_clr;
	uint64_t propagation;
	uint64_t userns_fd;
};

bool image_view_is_executable(int fd)
{
	struct statvfs st;

	return !fstatvfs(fd, &st) && !(st.f_flag & ST_NOEXEC);
}

static int clone_without_noexec(int dfd)
{
	struct view_attr attr = {.attr_clr = VIEW_ATTR_NOEXEC};
	int view, saved;

	view = syscall(__NR_open_tree, dfd, "", AT_EMPTY_PATH | O_CLOEXEC | VIEW_OPEN_TREE_CLONE);
	if (view < 0)
		return -1;
	if (!syscall(__NR_mount_setattr, view, "", AT_EMPTY_PATH, &attr, sizeof(attr)))
		return view;
	saved = errno;
	close(view);
	errno = saved;
	return -1;
}

void image_view_open(int images_dfd)
{
	int view;

	if (!switches()->mapped_restore || image_view_is_executable(images_dfd))
		return;
	view = clone_without_noexec(images_dfd);
	if (view < 0 || install_service_fd(IMG_VIEW_FD_OFF, view) < 0)
		pr_pwarn("gpuckpt: no executable view of the images, which lie on a mount with noexec");
}

void image_view_close(void)
{
	close_service_fd(IMG_VIEW_FD_OFF);
}

int image_view_open_file(const char *name)
{
	int dfd = get_service_fd(IMG_VIEW_FD_OFF);

	if (dfd < 0)
		dfd = get_service_fd(IMG_FD_OFF);
	return openat(dfd, name, O_RDONLY | O_CLOEXEC);
}
