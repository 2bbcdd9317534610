/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/rustai: the zero-copy tensor queue, version 1.0.
 *
 * A client opens /dev/rustai, the server /dev/rustai-engine. Operations are
 * ioctl(fd, RUSTAI_IOC(op), &struct); over the broker's SOCK_SEQPACKET socket the same
 * struct follows {__u32 op, __u32 len}. Each struct starts with its size; a longer one is
 * accepted if what is not known here is zero. Reserved fields and unknown flags are zero.
 * The layout is the same for 32-bit and 64-bit programs.
 */
#ifndef _UAPI_RUSTAI_H
#define _UAPI_RUSTAI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define RUSTAI_ABI_MAJOR 1
#define RUSTAI_ABI_MINOR 0

#define RUSTAI_IOCTL_TYPE 0xBA
#define RUSTAI_IOC(op) _IO(RUSTAI_IOCTL_TYPE, (op))

/* Operations; the server's start at 0x40. */
#define RUSTAI_OP_QUERY 0x00
#define RUSTAI_OP_SETUP 0x01
#define RUSTAI_OP_BUF_REGISTER 0x02
#define RUSTAI_OP_BUF_RELEASE 0x03
#define RUSTAI_OP_SUBMIT 0x04
#define RUSTAI_OP_WAIT 0x05
#define RUSTAI_OP_CANCEL 0x06
#define RUSTAI_OP_EVENTFD 0x07
#define RUSTAI_OP_LIMITS 0x08
#define RUSTAI_OP_STAT 0x09
#define RUSTAI_OP_ATTACH 0x40
#define RUSTAI_OP_FETCH 0x41
#define RUSTAI_OP_BUF_MAP 0x42
#define RUSTAI_OP_PROGRESS 0x43
#define RUSTAI_OP_COMMIT 0x44
#define RUSTAI_OP_ACK 0x45
#define RUSTAI_OP_DETACH 0x46

/* What a job asks for. */
#define RUSTAI_JOB_NOP 0 /* Nothing; completes at once. */
#define RUSTAI_JOB_ECHO 1 /* Completes as its parameters say: fault injection. */
#define RUSTAI_JOB_TOKENIZE 2 /* Text to token ids. */
#define RUSTAI_JOB_EMBED 3 /* Token ids to an embedding. */
#define RUSTAI_JOB_RERANK 4 /* Scores of documents for a query. */
#define RUSTAI_JOB_LOGITS 5 /* Prefill; returns logits. */
#define RUSTAI_JOB_GENERATE 6 /* Continues a sequence, token by token; streams. */
#define RUSTAI_JOB_MATMUL 7 /* A matrix product. */
/* Opens a session, which keeps the key/value cache between jobs. */
#define RUSTAI_JOB_SESSION_OPEN 8
#define RUSTAI_JOB_SESSION_CLOSE 9 /* Closes a session. */

/* Flags of struct rustai_job. */
#define RUSTAI_JOB_F_DEADLINE (1U << 0) /* deadline_ns counts. */
#define RUSTAI_JOB_F_DEP (1U << 1) /* dep_seq counts: start after that job, fail if it fails. */
#define RUSTAI_JOB_F_SESSION (1U << 2) /* session and session_epoch count. */

/* Flags of struct rustai_tensor. */
#define RUSTAI_TENSOR_F_OUT (1U << 0) /* The server writes it. */
#define RUSTAI_TENSOR_F_IN_PLACE (1U << 1) /* An output that may overlap an input. */
/* Values are indices (token ids, positions): the server copies and checks them before use. */
#define RUSTAI_TENSOR_F_INDEX (1U << 2)

/* Flags of struct rustai_completion. */
/* Progress: the job still runs and its final entry is to come. */
#define RUSTAI_CQE_F_MORE (1U << 0)
/* The job was canceled because the one that it depends on failed. */
#define RUSTAI_CQE_F_DEP (1U << 1)

/* Flags of the operations' structs. */
#define RUSTAI_F_BUF_RW (1U << 0) /* BufRegister: outputs may be written there. */
/*
 * Submit, Wait, Cancel, Fetch: deadline_ns bounds the wait. Without it the wait is
 * unbounded.
 */
#define RUSTAI_F_DEADLINE (1U << 0)
#define RUSTAI_F_NO_WAIT (1U << 1) /* Fetch: do not wait at all. */
#define RUSTAI_F_BY_USER_DATA (1U << 1) /* Cancel: the jobs with user_data. */
#define RUSTAI_F_BY_SESSION (1U << 2) /* Cancel: the jobs of session. */
#define RUSTAI_F_ALL (1U << 3) /* Cancel: all jobs. */
/* Cancel: wait until the server let go of the canceled jobs' buffers. */
#define RUSTAI_F_SETTLE (1U << 4)
#define RUSTAI_F_REMOVE (1U << 0) /* EventFd: take the eventfd away. */
#define RUSTAI_F_SET (1U << 0) /* Limits: set; without it they are only told. */
#define RUSTAI_F_MAPPED_RW (1U << 0) /* BufMap, answered: the buffer is writable. */

/* What happens to jobs when the server goes away. */
/*
 * Queued jobs stay until the server is back or their deadline passes; running ones
 * fail. The default.
 */
#define RUSTAI_POLICY_HOLD 0
#define RUSTAI_POLICY_FAIL 1 /* Queued and running jobs fail. */
/* Queued jobs stay; running ones that may run twice are queued again. */
#define RUSTAI_POLICY_REISSUE 2

/* Scheduling classes. */
#define RUSTAI_CLASS_BATCH 0 /* What has time. */
#define RUSTAI_CLASS_NORMAL 1 /* The usual one. */
#define RUSTAI_CLASS_INTERACTIVE 2 /* Someone waits for each token. */

/* Kinds of struct rustai_record. */
/* A job: followed by its struct rustai_job and its struct rustai_tensors. */
#define RUSTAI_RECORD_JOB 1
/* A running job that was canceled or timed out: stop, then commit it as usual. */
#define RUSTAI_RECORD_CANCEL 2
/* A buffer that the client gave up: stop using it, unmap it, then ACK. */
#define RUSTAI_RECORD_GONE 3

/* The server in struct rustai_query and struct rustai_ring. */
#define RUSTAI_SERVER_ABSENT 0 /* Nobody is attached. */
#define RUSTAI_SERVER_ATTACHED 1 /* One is attached. */

/* Features. */
#define RUSTAI_FEATURE_RING (1ULL << 0) /* The completion ring can be mapped. */
#define RUSTAI_FEATURE_EVENTFD (1ULL << 1) /* Completions signal an eventfd. */
#define RUSTAI_FEATURE_REATTACH (1ULL << 2) /* The queue outlives the server. */
#define RUSTAI_FEATURE_URING (1ULL << 3) /* SUBMIT as an io_uring command. */

/* Limits. */
#define RUSTAI_MAX_TENSORS 16
#define RUSTAI_MAX_DIMS 6
#define RUSTAI_MAX_DIM (1ULL << 40)
#define RUSTAI_MAX_ENTRIES (1U << 15)
#define RUSTAI_MAX_BATCH 1024
#define RUSTAI_MAX_STRUCT 4096
#define RUSTAI_MAX_REISSUES 3
#define RUSTAI_DEP_WINDOW 1024
#define RUSTAI_BUFFER_ALIGN 4096
#define RUSTAI_RING_OFFSET 0
#define RUSTAI_RING_ENTRIES_OFFSET 64
#define RUSTAI_QUANT_GGUF 0

/*
 * A job. Its tensors are tensor_count of struct rustai_tensor at tensors.
 */
struct rustai_job { /* 128 bytes */
	__u32 size;
	__u32 flags; /* RUSTAI_JOB_F_* */
	__aligned_u64 user_data; /* Comes back in the completion */
	__u16 opcode; /* RUSTAI_JOB_* */
	__u8 sched_class; /* RUSTAI_CLASS_* */
	__u8 reserved0; /* zero */
	__u32 tensor_count; /* Number of tensors, 0 to RUSTAI_MAX_TENSORS */
	/* Address of the tensors in the caller's memory; 0 in what the server fetches */
	__aligned_u64 tensors;
	/* Absolute time of CLOCK_MONOTONIC after which the job is of no use */
	__aligned_u64 deadline_ns;
	__aligned_u64 dep_seq; /* Sequence number of an earlier job of the same context */
	__u32 model; /* Number of the model on the server; 0 is its default */
	__u32 session; /* Number of the session */
	__u32 session_epoch; /* Epoch of the server that opened the session */
	__u32 reserved1; /* zero */
	__aligned_u64 params[8]; /* What the opcode needs */
};

/*
 * A tensor inside a registered buffer. dims[0] is the length of a row, as in GGUF; rows
 * follow each other without gaps.
 */
struct rustai_tensor { /* 96 bytes */
	__u32 size;
	__u32 flags; /* RUSTAI_TENSOR_F_* */
	__u32 buffer; /* The buffer */
	__u32 generation; /* Its generation */
	__aligned_u64 offset; /* Bytes from the start of the buffer */
	__aligned_u64 byte_len; /* Bytes of the tensor: exactly what type and shape need */
	__u32 dtype; /* Element type: its GGUF identifier */
	__u32 quant; /* Packing of blocks: RUSTAI_QUANT_GGUF */
	__u32 ndim; /* Dimensions in use, 1 to RUSTAI_MAX_DIMS */
	__u32 reserved0; /* zero */
	__aligned_u64 dims[6]; /* Elements along each dimension; zero past ndim */
};

/*
 * An entry of the completion ring.
 */
struct rustai_completion { /* 32 bytes */
	__u32 size;
	__u32 flags; /* RUSTAI_CQE_F_* */
	__aligned_u64 user_data; /* As in the job */
	__aligned_u64 seq; /* Sequence number of the job in its context; the first is 1 */
	__s32 result; /* 0 or more: the opcode's result; negative: an error number */
	/* What is ready in the output, in the opcode's unit (tokens for GENERATE) */
	__u32 count;
};

/*
 * The start of the completion ring's memory. The client maps it read-only; entries
 * start at RUSTAI_RING_ENTRIES_OFFSET. An entry i of the sequence lies at place i &
 * (entries - 1).
 */
struct rustai_ring { /* 64 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__u32 entries; /* Places, a power of two */
	/*
	 * Index of the next entry that will be written; wraps at 2^32. Read it with
	 * acquire order
	 */
	__u32 tail;
	__u32 epoch; /* The server's epoch, for clients that poll */
	__u32 server; /* RUSTAI_SERVER_* */
	__aligned_u64 reserved[5]; /* zero */
};

/*
 * QUERY: what is there.
 */
struct rustai_query { /* 128 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__u16 major; /* RUSTAI_ABI_MAJOR */
	__u16 minor; /* RUSTAI_ABI_MINOR */
	__u32 server; /* RUSTAI_SERVER_* */
	__aligned_u64 features; /* features of the queue */
	__aligned_u64 opcodes; /* Bit n: the server answers opcode n */
	__u32 epoch; /* Counts attachments of servers */
	__u32 max_entries; /* Limit of SETUP's entries */
	__u32 max_jobs; /* Jobs in flight per context */
	__u32 max_buffers; /* Buffers per context */
	__aligned_u64 max_bytes; /* Registered bytes per context */
	__u32 user_jobs; /* Jobs in flight per user */
	__u32 max_tensors; /* RUSTAI_MAX_TENSORS */
	__aligned_u64 user_bytes; /* Registered bytes per user */
	__aligned_u64 buffer_align; /* Ranges of buffers are multiples of this */
	__aligned_u64 reserved[6]; /* zero */
};

/*
 * SETUP: makes the completion ring.
 */
struct rustai_setup { /* 64 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__u16 major; /* The major version that the caller speaks */
	__u16 minor; /* The minor version that the caller speaks */
	__u32 entries; /* Places of the completion ring: a power of two */
	__aligned_u64 features; /* Features that the caller cannot do without */
	__u32 policy; /* RUSTAI_POLICY_* */
	__u32 reserved0; /* zero */
	__aligned_u64 ring_bytes; /* Answered: bytes to map at ring_offset */
	__aligned_u64 ring_offset; /* Answered: see ring_bytes */
	__aligned_u64 reserved[2]; /* zero */
};

/*
 * BUF_REGISTER: makes a part of a sealed memfd known as a buffer.
 */
struct rustai_buf_register { /* 64 bytes */
	__u32 size;
	__u32 flags; /* RUSTAI_F_BUF_RW */
	__s32 fd; /* The memfd, with the seals SHRINK, GROW and SEAL */
	__u32 reserved0; /* zero */
	/* Where the buffer starts in the file: a multiple of RUSTAI_BUFFER_ALIGN */
	__aligned_u64 offset;
	__aligned_u64 len; /* Its bytes: a multiple of RUSTAI_BUFFER_ALIGN */
	__u32 buffer; /* Answered: its name in tensors */
	__u32 generation; /* Answered: its generation */
	__aligned_u64 reserved[3]; /* zero */
};

/*
 * BUF_RELEASE: gives a buffer up. Jobs that use it go on; its memory goes when they
 * and the server are done.
 */
struct rustai_buf_release { /* 16 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__u32 buffer; /* The buffer */
	__u32 generation; /* Its generation */
};

/*
 * SUBMIT: hands jobs over, then waits for completions if wait is not zero.
 */
struct rustai_submit { /* 64 bytes */
	__u32 size;
	__u32 flags; /* RUSTAI_F_DEADLINE */
	__aligned_u64 jobs; /* Address of the jobs in the caller's memory */
	__u32 count; /* How many, at most RUSTAI_MAX_BATCH */
	__u32 head; /* Index of the first completion that the caller has not read */
	__u32 wait; /* Wait until this many completions are unread */
	__u32 admitted; /* Answered: jobs admitted */
	__aligned_u64 deadline_ns; /* Bound of the wait: absolute time of CLOCK_MONOTONIC */
	__aligned_u64 first_seq; /* Answered: sequence number of the first admitted job */
	/*
	 * Answered, if jobs were admitted: why it stopped before all was done (an error
	 * number), or 0
	 */
	__u32 error;
	__u32 tail; /* Answered: the ring's tail */
	__aligned_u64 reserved; /* zero */
};

/*
 * SUBMIT of one job as an io_uring command: what lies in the submission entry's command
 * area. cmd_op is the ioctl number of SUBMIT; the entry of the io_uring completion queue
 * is the job's completion, and holds its result. The job takes no place in the completion
 * ring, and its progress is not told.
 */
struct rustai_uring_submit { /* 16 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__aligned_u64 job; /* Address of the job in the caller's memory */
};

/*
 * WAIT: waits until completions are unread.
 */
struct rustai_wait { /* 32 bytes */
	__u32 size;
	__u32 flags; /* RUSTAI_F_DEADLINE */
	__u32 head; /* Index of the first completion that the caller has not read */
	__u32 wait; /* Wait until this many are unread; 0 only tells head */
	__aligned_u64 deadline_ns; /* Bound of the wait: absolute time of CLOCK_MONOTONIC */
	__u32 tail; /* Answered: the ring's tail */
	__u32 reserved; /* zero */
};

/*
 * CANCEL: completes jobs with ECANCELED.
 */
struct rustai_cancel { /* 48 bytes */
	__u32 size;
	/*
	 * One of RUSTAI_F_BY_USER_DATA, RUSTAI_F_BY_SESSION, RUSTAI_F_ALL; perhaps
	 * RUSTAI_F_SETTLE, RUSTAI_F_DEADLINE
	 */
	__u32 flags;
	__aligned_u64 user_data; /* See flags */
	__u32 session; /* See flags */
	__u32 session_epoch; /* The session's epoch */
	__aligned_u64 deadline_ns; /* Bound of the wait: absolute time of CLOCK_MONOTONIC */
	__u32 canceled; /* Answered: jobs that this call canceled */
	__u32 reserved0; /* zero */
	__aligned_u64 reserved; /* zero */
};

/*
 * EVENTFD: signals an eventfd at each completion.
 */
struct rustai_eventfd { /* 16 bytes */
	__u32 size;
	__u32 flags; /* RUSTAI_F_REMOVE */
	__s32 fd; /* The eventfd */
	__u32 reserved; /* zero */
};

/*
 * LIMITS: the context's own limits. Raising one needs CAP_SYS_RESOURCE.
 */
struct rustai_limits { /* 48 bytes */
	__u32 size;
	__u32 flags; /* RUSTAI_F_SET */
	__u32 max_jobs; /* Jobs in flight */
	__u32 max_buffers; /* Buffers */
	__aligned_u64 max_bytes; /* Registered bytes */
	__u32 class_cap; /* Highest class of jobs */
	__u32 weight; /* Share beside other contexts of the same class, 1 to 1000 */
	__aligned_u64 reserved[2]; /* zero */
};

/*
 * STAT: the context's counters.
 */
struct rustai_stat { /* 128 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__aligned_u64 admitted; /* Jobs admitted */
	__aligned_u64 completed; /* Jobs completed; admitted - completed are in flight */
	__aligned_u64 failed; /* Completed with an error */
	__aligned_u64 canceled; /* Completed because they were canceled */
	__aligned_u64 timed_out; /* Completed because their deadline passed */
	__aligned_u64 reissued; /* Queued again after a death of the server */
	__aligned_u64 progress; /* Progress entries written or brought up to date */
	__aligned_u64 refused; /* SUBMITs refused for lack of room or quota */
	__aligned_u64 bytes; /* Registered bytes */
	__u32 buffers; /* Registered buffers */
	__u32 waiting; /* Jobs that wait for another */
	__u32 queued; /* Jobs that wait for the server */
	__u32 running; /* Jobs that the server has */
	/*
	 * Payload bytes that the queue copied: it has no code that would, so this stays
	 * 0
	 */
	__aligned_u64 queue_copied;
	__aligned_u64 server_copied; /* Payload bytes that the server says it copied */
	__aligned_u64 reserved[2]; /* zero */
};

/*
 * ATTACH: becomes the server.
 */
struct rustai_attach { /* 64 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__u16 major; /* The major version that the caller speaks */
	__u16 minor; /* The minor version that the caller speaks */
	__u32 epoch; /* Answered: the server's epoch */
	__aligned_u64 features; /* Features that the caller cannot do without */
	__aligned_u64 opcodes; /* Bit n: answers opcode n */
	__aligned_u64 reserved[4]; /* zero */
};

/*
 * FETCH: takes jobs and notices, each a struct rustai_record.
 */
struct rustai_fetch { /* 64 bytes */
	__u32 size;
	__u32 flags; /* RUSTAI_F_DEADLINE, RUSTAI_F_NO_WAIT */
	__aligned_u64 records; /* Address where records go */
	__u32 len; /* Bytes there */
	__u32 max; /* Records, at most */
	__aligned_u64 deadline_ns; /* Bound of the wait: absolute time of CLOCK_MONOTONIC */
	__u32 count; /* Answered: records written */
	__u32 used; /* Answered: bytes written */
	__aligned_u64 reserved[3]; /* zero */
};

/*
 * One fetched thing. size covers what follows the record.
 */
struct rustai_record { /* 64 bytes */
	__u32 size; /* Bytes of the record with what follows it */
	__u32 flags; /* zero */
	__u32 kind; /* RUSTAI_RECORD_* */
	/* JOB, CANCEL: names the job in PROGRESS and COMMIT, with generation */
	__u32 slot;
	__u32 generation; /* See slot */
	__u32 context; /* The client, with context_generation */
	__u32 context_generation; /* See context */
	__u32 uid; /* The client's user */
	__aligned_u64 seq; /* JOB: its sequence number */
	__u32 buffer; /* GONE: the buffer */
	__u32 buffer_generation; /* GONE: its generation */
	__aligned_u64 reserved[2]; /* zero */
};

/*
 * BUF_MAP: asks for a descriptor of a client's buffer.
 */
struct rustai_buf_map { /* 64 bytes */
	__u32 size;
	__u32 flags; /* Answered: RUSTAI_F_MAPPED_RW */
	__u32 context; /* The client */
	__u32 context_generation; /* Its generation */
	__u32 buffer; /* The buffer */
	__u32 generation; /* Its generation */
	__aligned_u64 offset; /* Answered: where the buffer starts in the file */
	__aligned_u64 len; /* Answered: its bytes */
	__s32 fd; /* Answered: the descriptor */
	__u32 reserved0; /* zero */
	__aligned_u64 reserved[2]; /* zero */
};

/*
 * PROGRESS: tells the client how much of the output is ready.
 */
struct rustai_progress { /* 24 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__u32 slot; /* The job */
	__u32 generation; /* Its generation */
	__u32 count; /* As in struct rustai_completion */
	__u32 reserved; /* zero */
};

/*
 * COMMIT: completes jobs.
 */
struct rustai_commit { /* 32 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__aligned_u64 outcomes; /* Address of count of struct rustai_outcome */
	__u32 count; /* How many, at most RUSTAI_MAX_BATCH */
	__u32 done; /* Answered: how many were taken */
	/* Answered, if some were taken: why the next was not (an error number), or 0 */
	__u32 error;
	__u32 reserved; /* zero */
};

/*
 * The result of one job in COMMIT.
 */
struct rustai_outcome { /* 32 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__u32 slot; /* The job */
	__u32 generation; /* Its generation */
	__s32 result; /* As in struct rustai_completion */
	__u32 count; /* As in struct rustai_completion */
	__aligned_u64 copied; /* Payload bytes that the server copied for it */
};

/*
 * ACK: the server no longer touches a buffer that is GONE.
 */
struct rustai_ack { /* 24 bytes */
	__u32 size;
	__u32 flags; /* zero */
	__u32 context; /* The client */
	__u32 context_generation; /* Its generation */
	__u32 buffer; /* The buffer */
	__u32 generation; /* Its generation */
};

/*
 * DETACH: the server goes in an orderly way; policies apply as at its death.
 */
struct rustai_detach { /* 8 bytes */
	__u32 size;
	__u32 flags; /* zero */
};

#endif /* _UAPI_RUSTAI_H */
