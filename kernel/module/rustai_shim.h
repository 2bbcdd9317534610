/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _RUSTAI_SHIM_H
#define _RUSTAI_SHIM_H
#include <linux/types.h>
struct file;
struct io_uring_cmd;
int rustai_check_memfd(struct file *file, bool writable, u64 *bytes);
struct file *rustai_reopen(struct file *file, bool writable);
bool rustai_may_raise(void);
struct file *rustai_uring_file(const struct io_uring_cmd *cmd);
u32 rustai_uring_op(const struct io_uring_cmd *cmd);
void rustai_uring_read(const struct io_uring_cmd *cmd, u8 *to);
bool rustai_uring_is_cancel(unsigned int flags);
void rustai_uring_start(struct io_uring_cmd *cmd, unsigned int flags);
void rustai_uring_name(struct io_uring_cmd *cmd, u32 slot, u32 generation);
bool rustai_uring_named(const struct io_uring_cmd *cmd, u32 *slot, u32 *generation);
void rustai_uring_refuse(struct io_uring_cmd *cmd, int result, unsigned int flags);
void rustai_uring_complete(struct io_uring_cmd *cmd, int result);
#endif
