// The inverted index: which entries (row, latent, value) each latent has, in order of rows.
//
// index: latents of all entries; those of row n are at first[n] .. first[n] + count[n], and later rows start later. An
// entry's number is its place. offsets (M + 1): the entries of latent j are slots[offsets[j] .. offsets[j + 1]], ascending.
//
// 1. index_count: entries of each latent, by integer atomics (a sum of ones has no order), and the row of each entry.
// 2. index_scan: offsets, a cursor per latent that starts at its offset, the runs of lists that are too long for
//    one block (`Cut`), and what the latents before each cost latent_update, by which its blocks share them out.
// 3. index_fill: each entry takes the next place of its latent, in whatever order; places are therefore
// 4. index_order: sorted within each latent. A row holds a latent at most once, so an entry's rank is the number of
//    rows below its own: counted by shuffles up to 32 entries, by the bits of a map of rows above. One warp does that for a
//    list that is not cut, index_order_long a block for one that is.
// The result does not depend on the order of atomics. Moves about 5 N k words and 3 M.
#include "common.cuh"

#define MAP_ROWS 8192u

// f(n, at) for each entry of the row of the thread's warp.
template <typename F> __device__ inline void each_entry(const u32 *first, const u32 *count, u32 n_rows, F f) {
    u32 n = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (n >= n_rows) return;
    u32 begin = first[n], end = begin + count[n];
    for (u32 at = begin + threadIdx.x % WARP; at < end; at += WARP) f(n, at);
}

extern "C" __global__ void __launch_bounds__(256)
    index_count(const u32 *index, const u32 *first, const u32 *count, u32 n_rows, u32 *totals, u32 *row) {
    each_entry(first, count, n_rows, [&](u32 n, u32 at) {
        atomicAdd(&totals[index[at]], 1u);
        row[at] = n;
    });
}

__device__ inline u64 runs_and_entries(Cut cut, u32 held) { return (u64)runs_of(cut, held) << 32 | held; }

// The runs of latent j are numbered from `first` on. Returns how many there is room for: all or none.
__device__ inline u32 place_runs(Cut cut, u32 m, u32 j, u32 first, u32 runs) {
    if (runs == 0) return 0;
    cut.first[j] = first;
    if (first + runs <= cut.most) {
        for (u32 r = 0; r < runs; r++) cut.latent[first + r] = j;
        return runs;
    }
    // The first list that there is no room for, nor for any after it.
    if (first <= cut.most) cut.first[m] = first;
    return 0;
}

// One block of 1024 threads: each takes four latents at a time, and a running total goes from tile to tile.
extern "C" __global__ void __launch_bounds__(1024)
    index_scan(const u32 *totals, u32 m, u32 *offsets, u32 *cursor, u64 *cost, CUT_ARGS()) {
    Cut cut = CUT();
    // Entries in the low half of a sum, runs in the high half.
    __shared__ u64 warps[32];
    u64 before = 0, cost_before = 0;
    for (u32 first = 0; first < m; first += 4 * 1024) {
        u32 j = first + 4 * threadIdx.x;
        bool whole = j + 4 <= m;
        Pack<u32> own = {};
        if (whole) own = load_pack(totals + j);
        u64 sum = 0;
        for (u32 l = 0; l < 4; l++) {
            if (!whole && j + l < m) own.v[l] = totals[j + l];
            sum += runs_and_entries(cut, own.v[l]);
        }
        u64 all, start = before + sum_before(sum, warps, &all);
        Pack<u32> starts;
        u64 costs[4], cost_of_four = 0;
        for (u32 l = 0; l < 4; l++) {
            starts.v[l] = (u32)start;
            u32 runs = place_runs(cut, m, j + l, (u32)(start >> 32), runs_of(cut, own.v[l]));
            costs[l] = ENTRIES_A_LATENT + (runs > 0 ? runs : own.v[l]);
            cost_of_four += costs[l];
            start += runs_and_entries(cut, own.v[l]);
        }
        u64 cost_of_tile, cost_here = cost_before + sum_before(cost_of_four, warps, &cost_of_tile);
        for (u32 l = 0; l < 4 && j + l < m; l++) {
            cost[j + l] = cost_here;
            cost_here += costs[l];
            if (j + l + 1 == m) cost[m] = cost_here;
        }
        cost_before += cost_of_tile;
        if (whole) {
            store_pack(offsets + j, starts);
            store_pack(cursor + j, starts);
        } else {
            for (u32 l = 0; l < 4 && j + l < m; l++) offsets[j + l] = cursor[j + l] = starts.v[l];
        }
        before += all;
    }
    if (threadIdx.x != 0) return;
    offsets[m] = (u32)before;
    u32 runs = (u32)(before >> 32);
    if (cut.first != 0 && runs <= cut.most) cut.first[m] = runs;
}

extern "C" __global__ void __launch_bounds__(256)
    index_fill(const u32 *index, const u32 *first, const u32 *count, u32 n_rows, u32 *cursor, u32 *unordered) {
    each_entry(first, count, n_rows, [&](u32, u32 at) { unordered[atomicAdd(&cursor[index[at]], 1u)] = at; });
}

// Up to 32 entries: each lane holds one, and counts those below it.
__device__ inline void order_short(const u32 *unordered, u32 begin, u32 held, u32 *slots) {
    u32 lane = threadIdx.x % WARP;
    u32 own = lane < held ? unordered[begin + lane] : ~0u;
    u32 rank = 0;
    for (u32 other = 0; other < WARP; other++) rank += __shfl_sync(FULL, own, other) < own;
    if (lane < held) slots[begin + rank] = own;
}

// More than 32 entries, by all threads of the block: it goes over the rows in maps of 8192 bits.
__device__ inline void order_long(const u32 *unordered, const u32 *row, u32 n_rows, u32 begin, u32 held, u32 *slots) {
    __shared__ u32 map[MAP_ROWS / 32];
    __shared__ u32 below[MAP_ROWS / 32];
    __shared__ u32 all;
    const u32 words = MAP_ROWS / 32, run = words / WARP;
    u32 placed = 0;
    for (u32 first = 0; first < n_rows; first += MAP_ROWS) {
        for (u32 w = threadIdx.x; w < words; w += blockDim.x) map[w] = 0;
        // The map must be empty before a bit is set.
        __syncthreads();
        for (u32 e = threadIdx.x; e < held; e += blockDim.x) {
            u32 bit = row[unordered[begin + e]] - first;
            if (bit < MAP_ROWS) atomicOr(&map[bit / 32], 1u << bit % 32);
        }
        // All bits must be set before they are counted.
        __syncthreads();
        if (threadIdx.x < WARP) {
            u32 sum = 0, from = threadIdx.x * run;
            for (u32 w = from; w < from + run; w++) {
                below[w] = sum;
                sum += __popc(map[w]);
            }
            u32 up_to = lanes_up_to(sum);
            for (u32 w = from; w < from + run; w++) below[w] += up_to - sum;
            if (threadIdx.x == WARP - 1) all = up_to;
        }
        // Counts of all words must be there before ranks are read from them.
        __syncthreads();
        for (u32 e = threadIdx.x; e < held; e += blockDim.x) {
            u32 own = unordered[begin + e], bit = row[own] - first;
            if (bit < MAP_ROWS) {
                u32 rank = below[bit / 32] + __popc(map[bit / 32] & ((1u << bit % 32) - 1u));
                slots[begin + placed + rank] = own;
            }
        }
        placed += all;
        // Ranks of all entries are read before the map is emptied for the next rows.
        __syncthreads();
    }
}

// One block of 32 threads per latent.
extern "C" __global__ void __launch_bounds__(32)
    index_order(const u32 *offsets, const u32 *unordered, const u32 *row, u32 n_rows, CUT_ARGS(), u32 *slots) {
    Cut cut = CUT();
    u32 begin = offsets[blockIdx.x], held = offsets[blockIdx.x + 1] - begin;
    if (held > WARP) {
        if (cut_into(cut, blockIdx.x, held) == 0) order_long(unordered, row, n_rows, begin, held, slots);
    } else if (held > 0) {
        order_short(unordered, begin, held, slots);
    }
}

// Lists that are cut into runs: a block takes every gridDim-th run, and orders the list of one that is its latent's first.
extern "C" __global__ void __launch_bounds__(256)
    index_order_long(const u32 *offsets, const u32 *unordered, const u32 *row, u32 n_rows, u32 m, CUT_ARGS(), u32 *slots) {
    Cut cut = CUT();
    u32 runs = cut.first[m];
    for (u32 r = blockIdx.x; r < runs; r += gridDim.x) {
        u32 j = cut.latent[r];
        if (cut.first[j] == r) order_long(unordered, row, n_rows, offsets[j], offsets[j + 1] - offsets[j], slots);
    }
}
