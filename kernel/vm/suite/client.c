// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * A client of /dev/rustai with nothing but the header: it hands three floats over and gets
 * them back doubled. Built for 64 and for 32 bits, the same program must work.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "rustai.h"

#define PAGE 4096

static int fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

static uint64_t in_seconds(unsigned int seconds)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec + (uint64_t)seconds) * 1000000000 + now.tv_nsec;
}

int main(void)
{
	int queue = open("/dev/rustai", O_RDWR | O_CLOEXEC);
	if (queue < 0)
		return fail("open");

	struct rustai_query query = { .size = sizeof(query) };
	if (ioctl(queue, RUSTAI_IOC(RUSTAI_OP_QUERY), &query))
		return fail("QUERY");
	if (query.major != RUSTAI_ABI_MAJOR)
		return fail("version");

	struct rustai_setup setup = {
		.size = sizeof(setup), .major = RUSTAI_ABI_MAJOR, .entries = 8,
		.features = RUSTAI_FEATURE_RING, .policy = RUSTAI_POLICY_HOLD,
	};
	if (ioctl(queue, RUSTAI_IOC(RUSTAI_OP_SETUP), &setup))
		return fail("SETUP");
	const char *ring = mmap(NULL, setup.ring_bytes, PROT_READ, MAP_SHARED, queue, setup.ring_offset);
	if (ring == MAP_FAILED)
		return fail("mmap of the ring");
	const struct rustai_ring *header = (const void *)ring;
	const struct rustai_completion *entries = (const void *)(ring + RUSTAI_RING_ENTRIES_OFFSET);

	int memory = memfd_create("tensors", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (memory < 0 || ftruncate(memory, 2 * PAGE))
		return fail("memfd");
	if (fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return fail("seals");
	float *values = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	if (values == MAP_FAILED)
		return fail("mmap of the tensors");
	struct rustai_buf_register buffer = {
		.size = sizeof(buffer), .flags = RUSTAI_F_BUF_RW, .fd = memory, .len = 2 * PAGE,
	};
	if (ioctl(queue, RUSTAI_IOC(RUSTAI_OP_BUF_REGISTER), &buffer))
		return fail("BUF_REGISTER");

	struct rustai_tensor tensors[2];
	memset(tensors, 0, sizeof(tensors));
	for (int i = 0; i < 2; i++) {
		tensors[i].size = sizeof(tensors[i]);
		tensors[i].buffer = buffer.buffer;
		tensors[i].generation = buffer.generation;
		tensors[i].offset = i * PAGE;
		tensors[i].byte_len = 3 * sizeof(float);
		tensors[i].ndim = 1;
		tensors[i].dims[0] = 3;
	}
	tensors[1].flags = RUSTAI_TENSOR_F_OUT;

	for (unsigned int round = 0; round < 100; round++) {
		for (int i = 0; i < 3; i++)
			values[i] = round + i / 4.0f;
		struct rustai_job job = {
			.size = sizeof(job), .flags = RUSTAI_JOB_F_DEADLINE, .user_data = round,
			.opcode = RUSTAI_JOB_MATMUL, .sched_class = RUSTAI_CLASS_NORMAL,
			.tensor_count = 2, .tensors = (uintptr_t)tensors, .deadline_ns = in_seconds(60),
			.params = { round },
		};
		struct rustai_submit submit = {
			.size = sizeof(submit), .jobs = (uintptr_t)&job, .count = 1, .head = round,
		};
		if (ioctl(queue, RUSTAI_IOC(RUSTAI_OP_SUBMIT), &submit) || submit.admitted != 1)
			return fail("SUBMIT");
		struct rustai_wait wait = {
			.size = sizeof(wait), .flags = RUSTAI_F_DEADLINE, .head = round, .wait = 1,
			.deadline_ns = in_seconds(60),
		};
		if (ioctl(queue, RUSTAI_IOC(RUSTAI_OP_WAIT), &wait))
			return fail("WAIT");
		if (__atomic_load_n(&header->tail, __ATOMIC_ACQUIRE) != round + 1 || wait.tail != round + 1)
			return fail("tail");
		const struct rustai_completion *entry = &entries[round & (setup.entries - 1)];
		if (entry->user_data != round || entry->result != (int)round || entry->seq != round + 1)
			return fail("completion");
		for (int i = 0; i < 3; i++)
			if (values[PAGE / sizeof(float) + i] != 2 * (round + i / 4.0f))
				return fail("values");
	}
	printf("ok %zu\n", 8 * sizeof(void *));
	return 0;
}
