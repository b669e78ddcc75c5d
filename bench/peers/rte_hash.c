/*
 * DPDK's rte_hash, as the report measures it beside Wirelane's flow table: keys are put in, then looked up 64 at a
 * time, which is the most that rte_hash takes at once and what it is fastest at. Nobody writes meanwhile, and the
 * table is made without the flags that would let somebody: its fastest form.
 *
 *   rte_hash STORED LOOKUPS [EAL ARGUMENTS]
 *
 * Reads STORED keys of 16 bytes that are put in, then LOOKUPS that are all there, then LOOKUPS of which none is.
 * Prints how many KiB of its memory are in huge pages; then, for each line "hit" or "miss" that it reads, the
 * nanoseconds that one such lookup took.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <rte_common.h>
#include <rte_cycles.h>
#include <rte_debug.h>
#include <rte_errno.h>
#include <rte_eal.h>
#include <rte_hash.h>
#include <rte_hash_crc.h>
#include <rte_lcore.h>
#include <rte_malloc.h>
#include <rte_memory.h>

#define KEY 16
#define BULK RTE_HASH_LOOKUP_BULK_MAX

#define MIB ((size_t)1 << 20)
#define HEAP "huge"

/*
 * A heap of memory that the kernel is asked to make of huge pages, which is how the flow table gets its own: no
 * hugetlbfs has to be set up, and both have the same kind of pages. Returns the socket that stands for it.
 */
static int heap(size_t bytes)
{
	char *area = mmap(NULL, bytes + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		rte_exit(EXIT_FAILURE, "no memory\n");
	area = RTE_PTR_ALIGN_CEIL(area, 2 * MIB);
	madvise(area, bytes, MADV_HUGEPAGE);
	if (rte_malloc_heap_create(HEAP) || rte_malloc_heap_memory_add(HEAP, area, bytes, NULL, 0, 2 * MIB))
		rte_exit(EXIT_FAILURE, "no heap: %s\n", rte_strerror(rte_errno));
	return rte_malloc_heap_get_socket(HEAP);
}

/* KiB of one of the fields of this process's smaps_rollup. */
static long resident(const char *name)
{
	char line[256];
	long kib = 0;
	FILE *file = fopen("/proc/self/smaps_rollup", "r");

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			kib = atol(line + strlen(name) + 1);
	if (file)
		fclose(file);
	return kib;
}

/* Looks all keys up and returns how many are there; the data of every one that is has been read. */
static __rte_noinline uint64_t look_up(const struct rte_hash *hash, const char *keys, size_t count)
{
	uint64_t hits = 0, sum = 0;

	for (size_t first = 0; first < count; first += BULK) {
		uint32_t n = RTE_MIN((size_t)BULK, count - first);
		const void *asked[BULK];
		void *data[BULK];
		uint64_t mask = 0;

		for (uint32_t i = 0; i < n; i++)
			asked[i] = keys + (first + i) * KEY;
		hits += rte_hash_lookup_bulk_data(hash, asked, n, &mask, data);
		for (; mask; mask &= mask - 1)
			sum += (uintptr_t)data[__builtin_ctzll(mask)];
	}
	/* What was read must not be optimised away. */
	__asm__ volatile("" : : "r"(sum));
	return hits;
}

/* Prints what one lookup took. The first pass is not timed: it fills the caches as far as they can be. */
static void measure(const struct rte_hash *hash, const char *keys, size_t lookups, uint64_t expected)
{
	uint64_t hits = look_up(hash, keys, lookups);
	uint64_t start = rte_rdtsc();

	hits += look_up(hash, keys, lookups);
	uint64_t cycles = rte_rdtsc() - start;

	if (hits != 2 * expected)
		rte_exit(EXIT_FAILURE, "%" PRIu64 " keys found, not %" PRIu64 "\n", hits, 2 * expected);
	printf("%.3f\n", cycles * 1e9 / rte_get_tsc_hz() / lookups);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: %s STORED LOOKUPS [EAL ARGUMENTS]\n", argv[0]);
		return EXIT_FAILURE;
	}
	size_t stored = strtoul(argv[1], NULL, 10), lookups = strtoul(argv[2], NULL, 10);

	argv[2] = argv[0];
	if (rte_eal_init(argc - 2, argv + 2) < 0)
		rte_exit(EXIT_FAILURE, "the EAL does not start\n");

	size_t count = stored + 2 * lookups;
	char *keys = malloc(count * KEY);
	if (!keys || fread(keys, KEY, count, stdin) != count)
		rte_exit(EXIT_FAILURE, "there are fewer than %zu keys\n", count);

	/* Twice as many entries as keys: half full, nearly every key is in the first bucket that is looked at. */
	struct rte_hash_parameters parameters = {
		.name = "flows",
		.entries = RTE_MAX(2 * stored, (size_t)64),
		.key_len = KEY,
		.hash_func = rte_hash_crc,
		.socket_id = heap(RTE_ALIGN_CEIL(2 * stored * 100, 2 * MIB) + 64 * MIB),
	};
	struct rte_hash *hash = rte_hash_create(&parameters);
	if (!hash)
		rte_exit(EXIT_FAILURE, "no table: %s\n", rte_strerror(rte_errno));
	for (size_t n = 0; n < stored; n++)
		if (rte_hash_add_key_data(hash, keys + n * KEY, (void *)(uintptr_t)(n + 1)))
			rte_exit(EXIT_FAILURE, "key %zu is not taken\n", n);
	printf("%ld\n", resident("AnonHugePages"));
	fflush(stdout);

	const char *present = keys + stored * KEY, *absent = present + lookups * KEY;
	char asked[16];
	while (fgets(asked, sizeof(asked), stdin)) {
		if (!strcmp(asked, "hit\n"))
			measure(hash, present, lookups, lookups);
		else
			measure(hash, absent, lookups, 0);
	}
	rte_hash_free(hash);
	return rte_eal_cleanup() ? EXIT_FAILURE : EXIT_SUCCESS;
}
