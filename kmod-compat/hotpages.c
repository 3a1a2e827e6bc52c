// SPDX-License-Identifier: GPL-2.0
/*
 * hotpages: tells what the LRU knows of the pages of a file.
 *
 * It reads flags and changes nothing: no page is brought in, none is marked,
 * none is kept for longer than it takes to look at it.
 */
#include <linux/capability.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(4, 11, 0)
#include <linux/sched/signal.h>
#endif

#include "compat.h"

/* Runs that are gathered before they are copied to the caller. */
#define GATHERED (PAGE_SIZE / sizeof(struct hotpages_run))

/* So many batches, of 15 or 31 folios, are looked at in one call. */
#define BATCHES_A_CALL 4096

static struct workqueue_struct *drain_queue;
static DEFINE_PER_CPU(struct work_struct, drain_work);
/* Held while drain_work is in use. */
static DEFINE_MUTEX(drain_lock);

static void drain(struct work_struct *work)
{
	drain_this_cpu();
}

static int drain_all(void)
{
	int cpu;

	if (mutex_lock_killable(&drain_lock))
		return -EINTR;
	cpus_read_lock();
	for_each_online_cpu(cpu)
		queue_work_on(cpu, drain_queue, per_cpu_ptr(&drain_work, cpu));
	for_each_online_cpu(cpu)
		flush_work(per_cpu_ptr(&drain_work, cpu));
	cpus_read_unlock();
	mutex_unlock(&drain_lock);
	return 0;
}

/* Runs on their way to the caller. */
struct answer {
	struct hotpages_run *gathered;
	unsigned int count;	/* of gathered */
	struct hotpages_run __user *to;
	u32 room;		/* what still fits there */
	u32 told;		/* what is there */
};

static int hand_over(struct answer *answer)
{
	if (copy_to_user(answer->to, answer->gathered, answer->count * sizeof(*answer->to)))
		return -EFAULT;
	answer->to += answer->count;
	answer->room -= answer->count;
	answer->told += answer->count;
	answer->count = 0;
	return 0;
}

/* Adds pages [first, end). False when there is no room for them. */
static bool gather(struct answer *answer, u64 first, u64 end, u32 flags)
{
	struct hotpages_run *run;

	if (answer->count) {
		run = &answer->gathered[answer->count - 1];
		if (run->index + run->pages == first && run->flags == flags &&
		    end - first <= U32_MAX - run->pages) {
			run->pages += end - first;
			return true;
		}
	}
	if (answer->count >= answer->room)
		return false;
	run = &answer->gathered[answer->count++];
	run->index = first;
	run->pages = end - first;
	run->flags = flags;
	return true;
}

/* Answers up to the new query->start. */
static int walk(struct address_space *mapping, struct hotpages_query *query, struct answer *answer)
{
	struct inode *inode = mapping->host;
	struct hotpages_batch batch;
	unsigned int i, batches;
	int result;

	for (batches = 0; batches < BATCHES_A_CALL; batches++) {
		/* Anew each time, for it may be truncated. */
		u64 size = i_size_read(inode);
		u64 end = min_t(u64, query->end, (size >> PAGE_SHIFT) + !!(size & ~PAGE_MASK));
		pgoff_t next = query->start;
		bool full = false;

		if (query->start >= end) {
			query->start = query->end;
			break;
		}
		/* What is gathered has room for a batch. */
		if (answer->count + HOTPAGES_BATCH > GATHERED) {
			result = hand_over(answer);
			if (result)
				return result;
		}
		hotpages_batch_init(&batch);
		hotpages_batch_get(&batch, mapping, &next, end - 1);
		if (!hotpages_batch_count(&batch)) {
			query->start = query->end;
			break;
		}
		for (i = 0; i < hotpages_batch_count(&batch) && !full; i++) {
			struct hotpages_folio *folio = hotpages_batch_folio(&batch, i);
			u64 first = hotpages_first(folio);
			u64 after = min_t(u64, first + hotpages_pages(folio), end);

			first = max_t(u64, first, query->start);
			/* Truncated, or beyond the end. */
			if (!hotpages_belongs(folio, mapping) || first >= after)
				continue;
			full = !gather(answer, first, after, hotpages_flags(folio) & query->want);
			if (!full)
				query->start = after;
		}
		hotpages_batch_release(&batch);
		if (full)
			break;
		query->start = min_t(u64, max_t(u64, query->start, next), query->end);
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return hand_over(answer);
}

/* Whether there is a page cache to look at. */
static bool has_page_cache(struct address_space *mapping)
{
	struct inode *inode = mapping->host;

	return S_ISREG(inode->i_mode) && !IS_DAX(inode) &&
	       inode->i_sb->s_magic != HUGETLBFS_MAGIC;
}

static long answer_query(struct hotpages_query __user *argument)
{
	struct hotpages_query query;
	struct answer answer = {};
	struct address_space *mapping;
	struct file *file;
	long result;

	if (copy_from_user(&query, argument, sizeof(query)))
		return -EFAULT;
	if (query.count || !query.room || query.start > query.end || query.end > ULONG_MAX ||
	    (query.want & ~HOTPAGES_FLAGS))
		return -EINVAL;
	file = fget(query.fd);
	if (!file)
		return -EBADF;
	result = -EOPNOTSUPP;
	if (!S_ISREG(file_inode(file)->i_mode))
		goto put;
	mapping = hotpages_mapping(file);
	if (!has_page_cache(mapping))
		goto put;
	result = -ENOMEM;
	answer.gathered = (void *)__get_free_page(GFP_KERNEL);
	if (!answer.gathered)
		goto put;
	answer.to = (void __user *)(unsigned long)query.runs;
	answer.room = query.room;
	result = walk(mapping, &query, &answer);
	free_page((unsigned long)answer.gathered);
	query.count = answer.told;
	if (!result && copy_to_user(argument, &query, sizeof(query)))
		result = -EFAULT;
put:
	fput(file);
	return result;
}

static long answer_version(struct hotpages_version __user *argument)
{
	struct hotpages_version version = {
		.abi = HOTPAGES_ABI,
		.flags = HOTPAGES_FLAGS,
		.query_size = sizeof(struct hotpages_query),
		.run_size = sizeof(struct hotpages_run),
		.page_size = PAGE_SIZE,
	};

	return copy_to_user(argument, &version, sizeof(version)) ? -EFAULT : 0;
}

static long hotpages_ioctl(struct file *device, unsigned int command, unsigned long argument)
{
	/* The descriptor may have been passed on. */
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	switch (command) {
	case HOTPAGES_IOC_VERSION:
		return answer_version((void __user *)argument);
	case HOTPAGES_IOC_DRAIN:
		return drain_all();
	case HOTPAGES_IOC_QUERY:
		return answer_query((void __user *)argument);
	default:
		return -ENOTTY;
	}
}

static int hotpages_open(struct inode *inode, struct file *device)
{
	return capable(CAP_SYS_ADMIN) ? 0 : -EPERM;
}

static const struct file_operations hotpages_operations = {
	/* An open device holds the module: unloading is refused. */
	.owner = THIS_MODULE,
	.open = hotpages_open,
	.unlocked_ioctl = hotpages_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice hotpages_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "hotpages",
	.mode = 0600,
	.fops = &hotpages_operations,
};

static int __init hotpages_init(void)
{
	int cpu, result;

	BUILD_BUG_ON(sizeof(struct hotpages_run) != 16);
	BUILD_BUG_ON(sizeof(struct hotpages_version) != 24);
	BUILD_BUG_ON(sizeof(struct hotpages_query) != 40);
	drain_queue = alloc_workqueue("hotpages", WQ_MEM_RECLAIM | WQ_PERCPU, 0);
	if (!drain_queue)
		return -ENOMEM;
	for_each_possible_cpu(cpu)
		INIT_WORK(per_cpu_ptr(&drain_work, cpu), drain);
	result = misc_register(&hotpages_device);
	if (result)
		destroy_workqueue(drain_queue);
	return result;
}

static void __exit hotpages_exit(void)
{
	misc_deregister(&hotpages_device);
	destroy_workqueue(drain_queue);
}

module_init(hotpages_init);
module_exit(hotpages_exit);

MODULE_DESCRIPTION("What the LRU knows of the pages of a file, for migrator");
MODULE_LICENSE("GPL");
