/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every difference between the kernels that hotpages.c is built for, and no
 * other code. It offers
 *
 *   cpus_read_lock(), cpus_read_unlock(), WQ_PERCPU
 *   drain_this_cpu()          empties this processor's batches of the LRU
 *   hotpages_mapping()        the pages of a file, behind an overlay, too
 *   struct hotpages_folio     a folio, or a page where there are none
 *   hotpages_belongs(), hotpages_first(), hotpages_pages(), hotpages_flags()
 *   struct hotpages_batch     some that are resident, with a reference to each
 *   hotpages_batch_init(), hotpages_batch_get(), hotpages_batch_count(),
 *   hotpages_batch_folio(), hotpages_batch_release(), HOTPAGES_BATCH
 *
 * Only symbols that are exported to modules are used.
 */
#ifndef HOTPAGES_COMPAT_H
#define HOTPAGES_COMPAT_H

#include <linux/cpu.h>
#include <linux/dcache.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/pagemap.h>
#include <linux/pagevec.h>
#include <linux/version.h>
#include <linux/workqueue.h>

#include "hotpages.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(4, 4, 0)
#error "hotpages needs Linux 4.4 or later"
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 0, 0)
#error "hotpages knows kernels up to 6.x: use migrator's eBPF source on later ones"
#endif

/*
 * module_init() with GCC 9 and later: a6e60d84989f "include/linux/module.h: copy
 * __init/__exit attrs to init/cleanup_module", 5.1.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 1, 0) && defined(__GNUC__) && __GNUC__ >= 9
#pragma GCC diagnostic ignored "-Wmissing-attributes"
#endif

/* 8f553c498e17 "cpu/hotplug: Provide cpus_read|write_[un]lock()" */
#if LINUX_VERSION_CODE < KERNEL_VERSION(4, 13, 0)
#define cpus_read_lock get_online_cpus
#define cpus_read_unlock put_online_cpus
#endif

/* 930c2ea566af "workqueue: Add new WQ_PERCPU flag": it was the default. */
#ifndef WQ_PERCPU
#define WQ_PERCPU 0
#endif

/*
 * d_real_inode came with overlayfs's own files: before, an open file was one
 * of the layer's (d1d04ef8572b "ovl: stack file ops", 4.19).
 */
static inline struct address_space *hotpages_mapping(struct file *file)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(4, 19, 0)
	struct inode *real = d_real_inode(file->f_path.dentry);

	if (real != file_inode(file))
		return real->i_mapping;
#endif
	return file->f_mapping;
}

/* Folios as batches: be0ced5e9cb8 "filemap: Add filemap_get_folios()", 5.19. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 19, 0)

#define hotpages_folio folio
#define hotpages_batch folio_batch
#define hotpages_batch_init folio_batch_init
#define hotpages_batch_count folio_batch_count
#define hotpages_batch_release folio_batch_release

/* The most that one batch holds, in folios. */
#ifdef PAGEVEC_SIZE
#define HOTPAGES_BATCH PAGEVEC_SIZE
#else
#define HOTPAGES_BATCH FOLIO_BATCH_SIZE
#endif

/* Fetches the next folios at or after *next, and moves *next behind them. */
static inline void hotpages_batch_get(struct folio_batch *batch, struct address_space *mapping,
				      pgoff_t *next, pgoff_t last)
{
	filemap_get_folios(mapping, next, last, batch);
}

static inline struct folio *hotpages_batch_folio(struct folio_batch *batch, unsigned int i)
{
	return batch->folios[i];
}

static inline bool hotpages_belongs(struct folio *folio, struct address_space *mapping)
{
	return READ_ONCE(folio->mapping) == mapping;
}

static inline pgoff_t hotpages_first(struct folio *folio)
{
	return folio->index;
}

static inline unsigned long hotpages_pages(struct folio *folio)
{
	return folio_nr_pages(folio);
}

/* 53fbef56e07d "mm: introduce memdesc_flags_t", 6.18. */
static inline unsigned long hotpages_raw_flags(struct folio *folio)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
	return READ_ONCE(folio->flags.f);
#else
	return READ_ONCE(folio->flags);
#endif
}

static inline u32 hotpages_flags(struct folio *folio)
{
	u32 told = 0;

	if (folio_test_referenced(folio))
		told |= HOTPAGES_REFERENCED;
	if (folio_test_active(folio))
		told |= HOTPAGES_ACTIVE;
	if (folio_test_dirty(folio))
		told |= HOTPAGES_DIRTY;
	if (folio_test_uptodate(folio))
		told |= HOTPAGES_UPTODATE;
	if (folio_test_unevictable(folio))
		told |= HOTPAGES_UNEVICTABLE;
#ifdef CONFIG_LRU_GEN
	/*
	 * The first use sets PG_referenced, the second PG_workingset or, since
	 * 6.14, the first of the bits of LRU_REFS_MASK, further ones those bits.
	 * Which generation is the newest can't be told to a module
	 * (root_mem_cgroup is not exported), so the folio's own says nothing.
	 */
	if (hotpages_raw_flags(folio) & LRU_GEN_MASK) {
		told |= HOTPAGES_LRU_GEN;
		if ((told & HOTPAGES_REFERENCED) &&
		    (hotpages_raw_flags(folio) & (LRU_REFS_MASK | BIT(PG_workingset))))
			told |= HOTPAGES_REUSED;
	}
#endif
	return told;
}

#else /* before folios in batches: pages */

#define hotpages_folio page
#define hotpages_batch pagevec
#define hotpages_batch_count pagevec_count
#define hotpages_batch_release pagevec_release
#define HOTPAGES_BATCH PAGEVEC_SIZE

static inline void hotpages_batch_init(struct pagevec *batch)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(4, 15, 0)
	pagevec_init(batch);
#else
	pagevec_init(batch, 0);
#endif
}

/* The index of a page: those of a huge page but its first have none of their own. */
static inline pgoff_t hotpages_first(struct page *page)
{
	struct page *head = compound_head(page);

	return head->index + (page - head);
}

static inline void hotpages_batch_get(struct pagevec *batch, struct address_space *mapping,
				      pgoff_t *next, pgoff_t last)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(4, 14, 0)
	pagevec_lookup_range(batch, mapping, next, last);
#else
	unsigned int count = pagevec_lookup(batch, mapping, *next, PAGEVEC_SIZE);

	if (count)
		*next = hotpages_first(batch->pages[count - 1]) + 1;
#endif
}

static inline struct page *hotpages_batch_folio(struct pagevec *batch, unsigned int i)
{
	return batch->pages[i];
}

static inline bool hotpages_belongs(struct page *page, struct address_space *mapping)
{
	return READ_ONCE(compound_head(page)->mapping) == mapping;
}

static inline unsigned long hotpages_pages(struct page *page)
{
	return 1;
}

static inline u32 hotpages_flags(struct page *page)
{
	struct page *head = compound_head(page);
	u32 told = 0;

	if (PageReferenced(head))
		told |= HOTPAGES_REFERENCED;
	if (PageActive(head))
		told |= HOTPAGES_ACTIVE;
	if (PageDirty(head))
		told |= HOTPAGES_DIRTY;
	if (PageUptodate(head))
		told |= HOTPAGES_UPTODATE;
	if (PageUnevictable(head))
		told |= HOTPAGES_UNEVICTABLE;
	return told;
}

#endif

/*
 * The one exported way to lru_add_drain() is the release of a batch, which
 * begins with it, also of an empty one. 1fec6890bf22 "mm: remove references
 * to pagevec", 6.5, renamed it.
 */
static inline void drain_this_cpu(void)
{
	struct hotpages_batch batch;

	hotpages_batch_init(&batch);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 5, 0)
	__folio_batch_release(&batch);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(5, 19, 0)
	__pagevec_release((struct pagevec *)&batch);
#else
	__pagevec_release(&batch);
#endif
}

#endif
