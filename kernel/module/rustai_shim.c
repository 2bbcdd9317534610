// SPDX-License-Identifier: GPL-2.0
/*
 * What Rust cannot reach: static inlines and structs without bindings.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/shmem_fs.h>
#include "rustai_shim.h"

#define RUSTAI_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/*
 * Whether a file may back a buffer: a memfd that can neither change its size nor its
 * seals. With F_SEAL_SEAL set, what is read here stays true, so no lock is needed.
 */
int rustai_check_memfd(struct file *file, bool writable, u64 *bytes)
{
	struct inode *inode = file_inode(file);
	unsigned int seals;

	if (!shmem_mapping(file->f_mapping))
		return -EINVAL;
	seals = READ_ONCE(SHMEM_I(inode)->seals);
	if ((seals & RUSTAI_SEALS) != RUSTAI_SEALS)
		return -EPERM;
	if (!(file->f_mode & FMODE_READ))
		return -EACCES;
	if (writable && (!(file->f_mode & FMODE_WRITE) ||
			 (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))))
		return -EACCES;
	*bytes = i_size_read(inode);
	return 0;
}

/* A new open file of the same memfd for the server, read-only unless registered so. */
struct file *rustai_reopen(struct file *file, bool writable)
{
	return dentry_open(&file->f_path,
			   (writable ? O_RDWR : O_RDONLY) | O_LARGEFILE, current_cred());
}

bool rustai_may_raise(void)
{
	return capable(CAP_SYS_RESOURCE);
}
