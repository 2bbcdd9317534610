/*
 * A client of the tensor queue in C: this file and kernel/include/uapi/rustai.h, no library.
 *
 *     cc -O2 -I kernel/include/uapi examples/queue/client.c -o client
 *     ./client socket:/run/user/1000/rustai/queue.sock
 *     ./client device:/dev/rustai
 *
 * It registers one buffer, has the server multiply two matrices that lie in it, and reads the product from the same
 * memory. Nothing is copied on the way.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "rustai.h"

/* The queue: the device, or a connection to a server. */
static int queue = -1;
static int over_socket;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

/*
 * One operation over the socket: {op, len}, the struct, then what its address would lead to. The reply is
 * {op, len, result, 0} and the struct. A descriptor goes and comes as SCM_RIGHTS.
 */
static int message(unsigned op, void *arg, size_t len, const void *rest, size_t rest_len, int fd, int *got)
{
	__u32 head[2] = { op, len }, reply[4];
	char sends[CMSG_SPACE(sizeof(int))] = { 0 }, receives[CMSG_SPACE(sizeof(int))];
	struct iovec out[3] = { { head, sizeof(head) }, { arg, len }, { (void *)rest, rest_len } };
	struct iovec in[2] = { { reply, sizeof(reply) }, { arg, len } };
	struct msghdr request = { .msg_iov = out, .msg_iovlen = 3 };
	struct msghdr answer = { .msg_iov = in, .msg_iovlen = 2, .msg_control = receives, .msg_controllen = sizeof(receives) };
	struct cmsghdr *control;

	if (fd >= 0) {
		request.msg_control = sends;
		request.msg_controllen = sizeof(sends);
		control = CMSG_FIRSTHDR(&request);
		control->cmsg_level = SOL_SOCKET;
		control->cmsg_type = SCM_RIGHTS;
		control->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(control), &fd, sizeof(int));
	}
	if (sendmsg(queue, &request, MSG_NOSIGNAL) < 0)
		return -1;
	if (recvmsg(queue, &answer, MSG_CMSG_CLOEXEC) < (ssize_t)sizeof(reply)) {
		errno = ECONNRESET;
		return -1;
	}
	control = CMSG_FIRSTHDR(&answer);
	if (got && control && control->cmsg_type == SCM_RIGHTS)
		memcpy(got, CMSG_DATA(control), sizeof(int));
	if ((__s32)reply[2] < 0) {
		errno = -(__s32)reply[2];
		return -1;
	}
	return 0;
}

static int operation(unsigned op, void *arg, size_t len, int fd, int *got)
{
	return over_socket ? message(op, arg, len, NULL, 0, fd, got) : ioctl(queue, RUSTAI_IOC(op), arg);
}

static void connect_to(const char *where)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (!strncmp(where, "device:", 7)) {
		queue = open(where + 7, O_RDWR | O_CLOEXEC);
		if (queue < 0)
			fail(where);
		return;
	}
	if (strncmp(where, "socket:", 7) || strlen(where + 7) >= sizeof(address.sun_path)) {
		fprintf(stderr, "give device:PATH or socket:PATH\n");
		exit(2);
	}
	over_socket = 1;
	strcpy(address.sun_path, where + 7);
	queue = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (queue < 0 || connect(queue, (struct sockaddr *)&address, sizeof(address)))
		fail(where);
}

/* A tensor of floats at an offset of a buffer. */
static struct rustai_tensor tensor(const struct rustai_buf_register *buffer, size_t offset, unsigned row, unsigned rows,
				   unsigned flags)
{
	struct rustai_tensor t = {
		.size = sizeof(t),
		.flags = flags,
		.buffer = buffer->buffer,
		.generation = buffer->generation,
		.offset = offset,
		.byte_len = (size_t)row * rows * 4,
		.dtype = 0, /* F32 */
		.ndim = 2,
		.dims = { row, rows },
	};
	return t;
}

int main(int argc, char **argv)
{
	enum { M = 3, N = 4, K = 64, BYTES = 1 << 16, ENTRIES = 8 };
	struct rustai_query query = { .size = sizeof(query) };
	struct rustai_setup setup = {
		.size = sizeof(setup), .major = RUSTAI_ABI_MAJOR, .minor = RUSTAI_ABI_MINOR, .entries = ENTRIES,
	};
	struct rustai_buf_register buffer = { .size = sizeof(buffer), .flags = RUSTAI_F_BUF_RW, .len = BYTES };
	struct rustai_submit submit = { .size = sizeof(submit), .count = 1, .wait = 1 };
	struct {
		struct rustai_job job;
		struct rustai_tensor tensors[3];
	} work = { 0 };
	const struct rustai_completion *done;
	const struct rustai_ring *ring;
	float *x, *w, *y;
	int memory, ring_fd = -1, i, row, column;

	if (argc != 2) {
		fprintf(stderr, "usage: %s device:PATH | socket:PATH\n", argv[0]);
		return 2;
	}
	connect_to(argv[1]);
	if (operation(RUSTAI_OP_QUERY, &query, sizeof(query), -1, NULL))
		fail("QUERY");
	if (query.major != RUSTAI_ABI_MAJOR) {
		fprintf(stderr, "the queue speaks version %u.%u\n", query.major, query.minor);
		return 1;
	}
	if (operation(RUSTAI_OP_SETUP, &setup, sizeof(setup), -1, &ring_fd))
		fail("SETUP");
	ring = mmap(NULL, setup.ring_bytes, PROT_READ, MAP_SHARED, over_socket ? ring_fd : queue, setup.ring_offset);
	if (ring == MAP_FAILED)
		fail("mapping the completion ring");

	memory = memfd_create("tensors", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (memory < 0 || ftruncate(memory, BYTES) || fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		fail("memory for tensors");
	x = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	if (x == MAP_FAILED)
		fail("mapping the tensors");
	buffer.fd = memory;
	if (operation(RUSTAI_OP_BUF_REGISTER, &buffer, sizeof(buffer), memory, NULL))
		fail("BUF_REGISTER");

	w = x + 4096;
	y = x + 8192;
	for (i = 0; i < M * K; i++)
		x[i] = (float)(i % 7) - 3;
	for (i = 0; i < N * K; i++)
		w[i] = (float)(i % 5) - 2;
	work.job.size = sizeof(work.job);
	work.job.user_data = 42;
	work.job.opcode = RUSTAI_JOB_MATMUL;
	work.job.sched_class = RUSTAI_CLASS_NORMAL;
	work.job.tensor_count = 3;
	work.tensors[0] = tensor(&buffer, 0, K, M, 0);
	work.tensors[1] = tensor(&buffer, 4096 * 4, K, N, 0);
	work.tensors[2] = tensor(&buffer, 8192 * 4, N, M, RUSTAI_TENSOR_F_OUT);
	if (over_socket) {
		/* Addresses are 0: the job and its tensors follow in the message. */
		if (message(RUSTAI_OP_SUBMIT, &submit, sizeof(submit), &work, sizeof(work), -1, NULL))
			fail("SUBMIT");
	} else {
		work.job.tensors = (__u64)(unsigned long)work.tensors;
		submit.jobs = (__u64)(unsigned long)&work.job;
		if (ioctl(queue, RUSTAI_IOC(RUSTAI_OP_SUBMIT), &submit))
			fail("SUBMIT");
	}
	/* The call has waited, so the entry is there; a client that polls would look at the tail until it moves. */
	if (__atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE) != 1) {
		fprintf(stderr, "no completion\n");
		return 1;
	}
	done = (const void *)((const char *)ring + RUSTAI_RING_ENTRIES_OFFSET);
	if (done->user_data != 42 || done->result < 0) {
		fprintf(stderr, "the job failed: %s\n", strerror(-done->result));
		return 1;
	}
	for (row = 0; row < M; row++) {
		for (column = 0; column < N; column++) {
			float sum = 0;

			for (i = 0; i < K; i++)
				sum += x[row * K + i] * w[column * K + i];
			if (sum != y[row * N + column]) {
				fprintf(stderr, "row %d, column %d: %f instead of %f\n", row, column, y[row * N + column], sum);
				return 1;
			}
		}
	}
	printf("%d x %d product, right in every element; %s\n", M, N, over_socket ? "socket" : "device");
	return 0;
}
