// The N k largest positive scores of a batch, exactly: each row's entries by latent, rows of any length.
//
//   z_nj = scores_nj + b_lat_j;  index, value: the positive ones among the N k largest z of the batch, row after row
//
// scores (N, pitch), b_lat (M); row n's entries are at first[n] .. first[n] + count[n]. A tie goes to the lowest row, then to
// the lowest latent. A step may want fewer: N min(k, step->active), or N k of those that fire.
//
// A score's key is its bits, which rise with it where it is positive; 31 of them, since the sign is 0.
// 1. batch_maxima: the largest key of each run of 32 scores, and how many runs have which 11 high bits.
// 2. batch_find: the N k-th largest maximum is at least `low`, so at least N k scores are, and runs below it have none of them.
// 3. batch_digits, batch_find: the N k-th largest key, 11 bits and twice 10: a histogram of the digit of the keys that agree
//    with the digits before, then the digit at which the count from above reaches what is wanted.
// 4. batch_count, batch_places: of each row how many keys lie above it, and how many equal it; those take what places are left,
//    row by row. Where the rows start.
// 5. batch_fill: the entries.
//
// A histogram is counted by integer atomics, which have no order. Where fewer scores are positive than there are places, all
// have one. Scores that are not finite set `bad`. Reads N M scores once, and four times those of runs that reach the bound: of
// which there are N k if no two of the largest share a run. One warp a row but in batch_maxima, which has a block a row.
// Source of the steps: src/backend/cpu/batch.rs; of the radix select: Alabi et al. 2012.
#include "common.cuh"

#define RUN 32u
#define BINS 2048u

// What the search knows; mirrored by the four words of `Batch::found` in src/backend/cuda/work.rs.
struct Found {
    u32 low;     // runs whose largest key is below have none of the N k largest
    u32 prefix;  // digits found so far
    u32 decided; // bits of those digits
    u32 want;    // places left among the keys that agree with them
};

// Key of a score: 0 where it has no place in any case.
__device__ inline u32 key_of(float z) { return z > 0.0f ? __float_as_uint(z) : 0; }

// Adds a block's histogram to that of the batch.
__device__ inline void add_bins(const u32 *bins, u32 *histogram) {
    // All keys of the block must be counted.
    __syncthreads();
    for (u32 b = threadIdx.x; b < BINS; b += blockDim.x) {
        if (bins[b] != 0) atomicAdd(&histogram[b], bins[b]);
    }
}

__device__ inline void clear_bins(u32 *bins) {
    for (u32 b = threadIdx.x; b < BINS; b += blockDim.x) bins[b] = 0;
    // All bins must be empty before any is counted.
    __syncthreads();
}

// Step 1. A thread has four neighbouring scores of 1024, so that eight threads have a run.
template <typename T>
__device__ void batch_maxima(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 runs, u32 *maxima, u32 *histogram,
                             u32 *bad) {
    __shared__ u32 bins[BINS];
    u64 n = blockIdx.x;
    clear_bins(bins);
    float zeros = 0.0f;
    for (u32 first = 0; first < m; first += 4 * blockDim.x) {
        u32 j = first + 4 * threadIdx.x, largest = 0;
        float z[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (j + 4 <= m) {
            Pack<T, 4> own = load_pack<T, 4>(scores + n * pitch + j);
            Pack<float> bias = load_pack(b_lat + j);
            for (u32 l = 0; l < 4; l++) z[l] = widen(own.v[l]) + bias.v[l];
        } else {
            for (u32 l = 0; l < 4 && j + l < m; l++) z[l] = widen(scores[n * pitch + j + l]) + b_lat[j + l];
        }
        for (u32 l = 0; l < 4; l++) {
            u32 key = key_of(z[l]);
            largest = key > largest ? key : largest;
            // 0, unless a score is infinite or no number.
            zeros += 0.0f * z[l];
        }
        for (u32 step = 4; step > 0; step /= 2) {
            u32 other = __shfl_xor_sync(FULL, largest, step);
            largest = other > largest ? other : largest;
        }
        if (threadIdx.x % 8 == 0 && j < m) {
            maxima[n * runs + j / RUN] = largest;
            if (largest != 0) atomicAdd(&bins[largest >> 20], 1u);
        }
    }
    add_bins(bins, histogram);
    int infinite = __syncthreads_or(zeros != 0.0f);
    if (threadIdx.x == 0) bad[n] = infinite != 0;
}

// Steps 2 and 3, one block of 1024 threads: the digit of the wanted key in a histogram, which is emptied for the next. Digits
// are `bits` wide and start at bit `shift`; with bits 0 the histogram is that of the maxima, and a search begins for `k` places
// a row.
extern "C" __global__ void __launch_bounds__(1024)
    batch_find(u32 *histogram, u32 shift, u32 bits, u32 k, u32 fires, const Step *step, Found *found) {
    __shared__ u32 warps[32];
    u32 want = bits == 0 ? step->n_rows * (fires ? k : min(k, step->active)) : found->want;
    u32 prefix = bits == 0 ? 0 : found->prefix, decided = bits == 0 ? 0 : found->decided;
    // From the largest digit down, so that the running sum counts the keys above.
    u32 bin = BINS - 2 - 2 * threadIdx.x;
    u32 high = histogram[bin + 1], low = histogram[bin];
    histogram[bin] = histogram[bin + 1] = 0;
    // It waits for all threads, which have read what is found so far.
    u32 all, above = sum_before(high + low, warps, &all);
    if (above < want && want <= above + high + low) {
        bool upper = want <= above + high;
        u32 digit = bin + (upper ? 1 : 0);
        if (bits == 0) {
            found->low = digit << 20;
            found->want = want;
        } else {
            found->prefix = prefix | digit << shift;
            found->want = want - (upper ? above : above + high);
        }
    }
    if (threadIdx.x != 0) return;
    if (bits == 0) {
        found->prefix = found->decided = 0;
        if (all < want) {
            // Fewer runs than places: any positive score may have one.
            found->low = 1;
            found->want = want;
        }
    } else if (decided == 0 && all < want) {
        // All positive scores have a place: every key lies above 0, and none equals it.
        found->prefix = found->want = 0;
        found->decided = ~0u;
    } else {
        found->decided = decided | ((1u << bits) - 1) << shift;
    }
}

// f(latent, key) for the scores of the warp's row n in runs whose largest key is `low` or more, 32 at a time by rising latent;
// all lanes of a warp call it together. Beyond the last latent the key is 0.
template <typename T, typename F>
__device__ inline void each_run(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 runs, const u32 *maxima, u64 n,
                                u32 low, F f) {
    u32 lane = threadIdx.x % WARP;
    for (u32 first = 0; first < runs; first += WARP) {
        u32 own = first + lane < runs ? maxima[n * runs + first + lane] : 0;
        for (u32 reach = __ballot_sync(FULL, own != 0 && own >= low); reach != 0; reach &= reach - 1) {
            u32 j = (first + __ffs(reach) - 1) * RUN + lane;
            f(j, j < m ? key_of(widen(scores[n * pitch + j]) + b_lat[j]) : 0);
        }
    }
}

// Step 3: the histogram of a digit.
template <typename T>
__device__ void batch_digits(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 runs, u32 n_rows, const u32 *maxima,
                             const Found *found, u32 shift, u32 bits, u32 *histogram) {
    __shared__ u32 bins[BINS];
    clear_bins(bins);
    u64 n = row_of_warp();
    u32 prefix = found->prefix, decided = found->decided, low = found->low;
    u32 least = prefix > low ? prefix : low;
    if (n < n_rows) {
        each_run(scores, b_lat, m, pitch, runs, maxima, n, least, [&](u32, u32 key) {
            if (key != 0 && key >= least && (key & decided) == prefix) atomicAdd(&bins[key >> shift & ((1u << bits) - 1)], 1u);
        });
    }
    add_bins(bins, histogram);
}

// Step 4: keys of each row above the last that has a place, and equal to it.
template <typename T>
__device__ void batch_count(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 runs, u32 n_rows, const u32 *maxima,
                            const Found *found, u32 *above, u32 *equal) {
    u64 n = row_of_warp();
    if (n >= n_rows) return;
    u32 least = found->prefix, larger = 0, same = 0;
    each_run(scores, b_lat, m, pitch, runs, maxima, n, least, [&](u32, u32 key) {
        larger += key > least;
        same += key != 0 && key == least;
    });
    larger = warp_sum(larger);
    same = warp_sum(same);
    if (threadIdx.x % WARP == 0) {
        above[n] = larger;
        equal[n] = same;
    }
}

// Step 4, one block of 1024 threads: `equal` becomes what a row may take of the keys that equal the last; first and count.
// `of_ranks` (ranks, N) has `equal` of each rank, where latents are shared out: those of a row's lower ranks come first. Else it
// is null.
extern "C" __global__ void __launch_bounds__(1024)
    batch_places(const u32 *above, u32 *equal, u32 n_rows, const Found *found, const u32 *of_ranks, u32 ranks, u32 rank,
                 u32 *first, u32 *count) {
    __shared__ u32 warps[32];
    u32 left = found->want, begin = 0;
    for (u32 tile = 0; tile < n_rows; tile += 1024) {
        u32 n = tile + threadIdx.x, same = n < n_rows ? equal[n] : 0, of_row = same, lower = 0, all;
        if (of_ranks != 0 && n < n_rows) {
            of_row = 0;
            for (u32 r = 0; r < ranks; r++) {
                if (r == rank) lower = of_row;
                of_row += of_ranks[(u64)r * n_rows + n];
            }
        }
        u32 before = sum_before(of_row, warps, &all) + lower;
        u32 takes = before < left ? min(same, left - before) : 0;
        left -= min(left, all);
        u32 own = n < n_rows ? above[n] + takes : 0;
        u32 start = begin + sum_before(own, warps, &all);
        begin += all;
        if (n < n_rows) {
            equal[n] = takes;
            first[n] = start;
            count[n] = own;
        }
    }
}

// Step 5: the entries, or, with `fires`, only which latents fire. A null `fired` is left out.
template <typename T>
__device__ void batch_fill(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 runs, u32 n_rows, const u32 *maxima,
                           const Found *found, const u32 *equal, const u32 *first, u32 fires, u32 *index, float *value,
                           u32 *fired) {
    u64 n = row_of_warp();
    if (n >= n_rows) return;
    u32 before = (1u << threadIdx.x % WARP) - 1, least = found->prefix, ties = equal[n], at = first[n];
    each_run(scores, b_lat, m, pitch, runs, maxima, n, least, [&](u32 j, u32 key) {
        bool same = key != 0 && key == least;
        u32 twins = __ballot_sync(FULL, same);
        bool takes = key > least || (same && (u32)__popc(twins & before) < ties);
        u32 takers = __ballot_sync(FULL, takes);
        if (takes) {
            u32 place = at + __popc(takers & before);
            if (!fires) {
                index[place] = j;
                value[place] = __uint_as_float(key);
            }
            if (fired != 0) fired[j] = 1;
        }
        ties -= min(ties, (u32)__popc(twins));
        at += __popc(takers);
    });
}

#define BATCH_TOPK(T, t)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        batch_maxima_##t(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 runs, u32 *maxima,                 \
                         u32 *histogram, u32 *bad) {                                                                   \
        batch_maxima<T>(scores, b_lat, m, pitch, runs, maxima, histogram, bad);                                        \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        batch_digits_##t(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 runs, u32 n_rows,                  \
                         const u32 *maxima, const Found *found, u32 shift, u32 bits, u32 *histogram) {                 \
        batch_digits<T>(scores, b_lat, m, pitch, runs, n_rows, maxima, found, shift, bits, histogram);                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        batch_count_##t(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 runs, u32 n_rows,                   \
                        const u32 *maxima, const Found *found, u32 *above, u32 *equal) {                               \
        batch_count<T>(scores, b_lat, m, pitch, runs, n_rows, maxima, found, above, equal);                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        batch_fill_##t(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 runs, u32 n_rows,                    \
                       const u32 *maxima, const Found *found, const u32 *equal, const u32 *first, u32 fires,           \
                       u32 *index, float *value, u32 *fired) {                                                         \
        batch_fill<T>(scores, b_lat, m, pitch, runs, n_rows, maxima, found, equal, first, fires, index, value,         \
                      fired);                                                                                          \
    }
BATCH_TOPK(float, f32)
BATCH_TOPK(bf16, bf16)
