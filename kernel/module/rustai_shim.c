// SPDX-License-Identifier: GPL-2.0
/*
 * What Rust cannot reach: static inlines and structs without bindings.
 */
#include <linux/capability.h>
#include <linux/cred.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/io_uring/cmd.h>
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

/* What a command remembers, under the queue's lock until it is completed. */
struct rustai_pdu {
	u32 slot;
	u32 generation;
	s32 result;
	bool named;
};

struct file *rustai_uring_file(const struct io_uring_cmd *cmd)
{
	return cmd->file;
}

u32 rustai_uring_op(const struct io_uring_cmd *cmd)
{
	return cmd->cmd_op;
}

/* The 16 bytes that the submission entry has for the command. */
void rustai_uring_read(const struct io_uring_cmd *cmd, u8 *to)
{
	struct { u8 bytes[16]; } copy;

	copy = *io_uring_sqe_cmd(cmd->sqe, typeof(copy));
	memcpy(to, copy.bytes, sizeof(copy.bytes));
}

bool rustai_uring_is_cancel(unsigned int flags)
{
	return flags & IO_URING_F_CANCEL;
}

void rustai_uring_start(struct io_uring_cmd *cmd, unsigned int flags)
{
	io_uring_cmd_to_pdu(cmd, struct rustai_pdu)->named = false;
	io_uring_cmd_mark_cancelable(cmd, flags);
}

void rustai_uring_name(struct io_uring_cmd *cmd, u32 slot, u32 generation)
{
	*io_uring_cmd_to_pdu(cmd, struct rustai_pdu) = (struct rustai_pdu) {
		.slot = slot, .generation = generation, .named = true,
	};
}

bool rustai_uring_named(const struct io_uring_cmd *cmd, u32 *slot, u32 *generation)
{
	const struct rustai_pdu *pdu = io_uring_cmd_to_pdu(cmd, const struct rustai_pdu);

	*slot = pdu->slot;
	*generation = pdu->generation;
	return pdu->named;
}

/* Completes a command in the call that issued it. */
void rustai_uring_refuse(struct io_uring_cmd *cmd, int result, unsigned int flags)
{
	io_uring_cmd_done(cmd, result, flags);
}

static void rustai_uring_work(struct io_tw_req tw_req, io_tw_token_t tw)
{
	struct io_uring_cmd *cmd = io_uring_cmd_from_tw(tw_req);

	io_uring_cmd_done(cmd, io_uring_cmd_to_pdu(cmd, struct rustai_pdu)->result,
			  IO_URING_CMD_TASK_WORK_ISSUE_FLAGS);
}

/*
 * Completes a command as the work of its task: io_uring's lock must not be taken under
 * the queue's.
 */
void rustai_uring_complete(struct io_uring_cmd *cmd, int result)
{
	io_uring_cmd_to_pdu(cmd, struct rustai_pdu)->result = result;
	io_uring_cmd_complete_in_task(cmd, rustai_uring_work);
}
