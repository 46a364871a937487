/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CLONE and COMMIT on an open working copy of a p2pvm mount.
 *
 * Both wait until they are done. They return 0, or -1 with errno: EBUSY (the blob has moved on, the name is taken, another
 * commit is under way), EROFS (an immutable version), EINTR (a signal came first), EIO (the fabric cannot be reached; nothing
 * is lost, and it can be tried again). After a commit the file is based on the new version; its path and inode stay.
 */
#ifndef P2PVM_H
#define P2PVM_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define P2PVM_NAME_BYTES 136	/* 128 characters, a NUL, and padding to 8 */
#define P2PVM_MESSAGE_BYTES 256
#define P2PVM_BLOB_BYTES 32

struct p2pvm_commit {
	char  name[P2PVM_NAME_BYTES];		/* in: commit as a new image of this name; empty: a new version of its blob */
	char  message[P2PVM_MESSAGE_BYTES];	/* in: UTF-8, ends with a NUL */
	char  blob[P2PVM_BLOB_BYTES];		/* out */
	__u64 version;				/* out */
	__s32 status;				/* out: 0, or the errno */
	__u32 reserved;				/* 0 */
};

struct p2pvm_clone {
	char  name[P2PVM_NAME_BYTES];		/* in: name of the new blob, or empty */
	char  blob[P2PVM_BLOB_BYTES];		/* out */
	__u64 version;				/* out */
	__s32 status;				/* out: 0, or the errno */
	__u32 reserved;				/* 0 */
};

#define P2PVM_IOC_MAGIC 0xE9
#define P2PVM_IOC_COMMIT _IOWR(P2PVM_IOC_MAGIC, 1, struct p2pvm_commit)
#define P2PVM_IOC_CLONE  _IOWR(P2PVM_IOC_MAGIC, 2, struct p2pvm_clone)

#endif
