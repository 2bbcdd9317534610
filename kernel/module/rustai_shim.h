/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _RUSTAI_SHIM_H
#define _RUSTAI_SHIM_H
#include <linux/types.h>
struct file;
int rustai_check_memfd(struct file *file, bool writable, u64 *bytes);
struct file *rustai_reopen(struct file *file, bool writable);
bool rustai_may_raise(void);
#endif
