/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What /dev/hotpages and its callers say to each other.
 *
 * Every struct has the same layout for 32 and 64 bits, and no padding.
 * migrator/src/source/kmod.rs has the same in Rust; a test there compiles
 * this file and compares. Whatever changes a meaning or a layout
 * raises HOTPAGES_ABI.
 */
#ifndef HOTPAGES_H
#define HOTPAGES_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define HOTPAGES_ABI 1

/* What is told of pages: bits of hotpages_run.flags. */
#define HOTPAGES_REFERENCED (1U << 0)	/* used since it came, or since it moved in its list */
#define HOTPAGES_ACTIVE (1U << 1)	/* on the active list; means nothing with LRU_GEN */
#define HOTPAGES_LRU_GEN (1U << 2)	/* on a list of the multi-generational LRU */
#define HOTPAGES_REUSED (1U << 3)	/* with LRU_GEN: used through read(2) again */
#define HOTPAGES_DIRTY (1U << 4)	/* differs from what is on the disk */
#define HOTPAGES_UPTODATE (1U << 5)	/* has its content */
#define HOTPAGES_UNEVICTABLE (1U << 6)	/* mlock(2) and the like */
#define HOTPAGES_FLAGS ((1U << 7) - 1)

/* Pages of one file that follow each other, are resident, and are alike. */
struct hotpages_run {
	__u64 index;	/* of the first page */
	__u32 pages;	/* how many, at least 1 */
	__u32 flags;	/* HOTPAGES_*, of those asked for */
};

/* Which module this is. */
struct hotpages_version {
	__u32 abi;		/* HOTPAGES_ABI */
	__u32 flags;		/* those that it knows, HOTPAGES_FLAGS */
	__u32 query_size;	/* sizeof(struct hotpages_query) */
	__u32 run_size;		/* sizeof(struct hotpages_run) */
	__u64 page_size;	/* in bytes */
};

/*
 * A question about the pages [start, end) of an open file. The answer is
 * complete up to the new `start`. When that is below `end`, there was more to
 * tell than `room`, or more work than one call does: ask again. Pages beyond
 * the end of the file are not told.
 */
struct hotpages_query {
	__u64 start;	/* in: index of the first page; out: where to go on, `end` when done */
	__u64 end;	/* in: index behind the last page */
	__u64 runs;	/* in: address of an array of struct hotpages_run */
	__u32 room;	/* in: how many fit into it, at least 1 */
	__u32 count;	/* in: 0; out: how many there are */
	__s32 fd;	/* in: the file, opened in any way but O_PATH */
	__u32 want;	/* in: the flags by which pages are told apart */
};

#define HOTPAGES_IOC_VERSION _IOR(0xB7, 0x70, struct hotpages_version)
/*
 * Has every processor finish what it put off. Activations wait in batches of 15
 * to 31 folios for each of them, and a page in one shows no flag at all: to be
 * called before the first question of a look at something.
 */
#define HOTPAGES_IOC_DRAIN _IO(0xB7, 0x71)
#define HOTPAGES_IOC_QUERY _IOWR(0xB7, 0x72, struct hotpages_query)

#endif
