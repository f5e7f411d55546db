// Exact top-k of each row of scores in one pass over memory, whatever the row's length; in the warm-up the same pass
// gives the softmax its largest exponent, its total and the sum of positive scores.
//
//   z_j = scores_j + b_lat_j;  index, value = the (up to k) positive ones among the k largest z, by index
//   topk_abs: the k of largest |z|, but for zeros, with their signs
//   t_j = relu(z_j) + g_j;     max = max_j t_j,  total = sum_j e^((t_j - max) / tau),  sum = sum_j relu(z_j)
//
// scores (N, pitch), b_lat (M), index and value (N, k); row n's entries are at first[n] .. first[n] + count[n].
// 1 <= k <= 1024. A step may want fewer than the lists have room for: min(k, step->active), read here so that an annealed k
// changes no launch. With `idle`, only latents idle for at least `dead_after` rows take part, and nothing happens while there
// are none.
// One block of 256 threads a row. A thread takes eight scores of a chunk of 2048 at a time.
//
// 1. The row is read once. A slot is what one thread reads of a quarter of the row's chunks; the largest score of each slot is
//    held in shared memory.
// 2. A bound that at least k scores reach: the k-th largest of the threads' maxima, or of the slots' where k is more than half
//    the threads, by a radix select of 8 bits a pass over the 16 highest bits. Where so many are not positive, the bound is
//    the least positive number.
// 3. The slots whose largest score reaches the bound are listed; little more than k of them, where scores lie as they fall.
// 4. Only these are read again, a thread a slot, and what reaches the bound is appended to shared memory as keys: (bits of z
//    or |z|, inverted index). Positive floats order as their bits do, and the lowest index wins a tie. Keys are all
//    different, so that the k largest are one set, in whatever order they arrive. Few scores are left by then: each takes
//    its place by an atomic of its own.
// 5. Whenever the next chunk might not fit, and at the end, the k largest are kept; after that only larger keys are appended.
//    Few keys are ranked all against all; of many, a radix select finds the k-th, 8 bits a pass from the top, and ends as
//    soon as a digit's bin is wanted whole.
// 6. What is held at the end, at most k, is written in order of index: for each, the lower ones are counted. A key of |z| has
//    no sign, so that the score is read once more.
//
// Ties go to the lowest index; the result does not depend on the order of atomics. Scores that are not finite set
// `bad`. Reads each score once from memory and those of the listed slots again: N M values, 4 M of b_lat from cache; writes
// 8 N k bytes.
// Idea of the bound: at least k scores reach the k-th largest of maxima over parts; of the radix select: Alabi et al. 2012.
#include "common.cuh"

#define TOPK_THREADS 256u
#define TOPK_CHUNK 2048u
#define TOPK_CAPACITY 3072u
// Slots of a thread.
#define TOPK_SLOTS 4u
// Keys that are ranked all against all rather than by a radix select.
#define TOPK_FEW 128u

struct TopkShared {
    // The maxima of the slots are done with when the first key is appended.
    union {
        alignas(16) u64 keys[TOPK_CAPACITY];
        float maxima[TOPK_SLOTS * TOPK_THREADS];
    };
    // Those listed: slot * 256 + thread. At the end the inverted indices of the keys.
    alignas(16) u32 slots[TOPK_SLOTS * TOPK_THREADS];
    u64 minima[TOPK_THREADS / WARP];
    // Away from the digit and what goes with it: the compiler reads neighbours as one vector, and a read of `held` on
    // the way would race with the thread that sets it.
    u32 held;
    alignas(16) u32 histogram[256];
    u32 digit;
    u32 above;
    u32 in_bin;
    u32 listed; // read with the three before as one vector: it must have been written
};

// Appends the keys of those threads that take theirs; all lanes of a warp call it, and share one atomic.
__device__ inline void append(TopkShared *s, u64 key, bool takes) {
    u32 lane = threadIdx.x % WARP, takers = __ballot_sync(FULL, takes), base = 0;
    if (takers == 0) return;
    if (lane == 0) base = atomicAdd(&s->held, (u32)__popc(takers));
    u32 at = __shfl_sync(FULL, base, 0) + __popc(takers & ((1u << lane) - 1));
    if (takes) s->keys[at] = key;
}

// Finds the digit of the `want`-th largest of those counted in the histogram; `in_bin` is left as it was where there are
// fewer.
__device__ inline void find_digit(TopkShared *s, u32 want) {
    if (threadIdx.x < WARP) {
        // Eight bins a lane, from the largest digit down, so that the running sum counts what lies above.
        u32 top = 255u - threadIdx.x * 8, bins[8], here = 0;
        for (u32 i = 0; i < 8; i += 4) {
            Pack<u32> four = load_pack(&s->histogram[top - i - 3]);
            for (u32 l = 0; l < 4; l++) here += bins[i + l] = four.v[3 - l];
        }
        u32 up_to = lanes_up_to(here), above = up_to - here;
        for (u32 i = 0; i < 8; i++) {
            if (above < want && want <= above + bins[i]) {
                s->digit = top - i;
                s->above = above;
                s->in_bin = bins[i];
            }
            above += bins[i];
        }
    }
    // The one lane that found the digit must have written it.
    __syncthreads();
}

// Step 2: a bound on the row's `want`-th largest score, from the largest scores of this thread's slots (`own`: of
// all of them); the least positive number where fewer than `want` maxima are positive.
__device__ inline float bound(TopkShared *s, float own, u32 slots, u32 want) {
    bool by_thread = want <= TOPK_THREADS / 2;
    if (by_thread) slots = 1;
    u32 prefix = 0;
    // Positive floats have a sign bit of 0: the exponent, then as many bits of the mantissa.
    for (int shift = 23; shift >= 15; shift -= 8) {
        s->histogram[threadIdx.x] = 0;
        if (threadIdx.x == 0) s->in_bin = 0;
        // All bins must be empty before any is counted.
        __syncthreads();
        for (u32 slot = 0; slot < slots; slot++) {
            u32 bits = __float_as_uint(by_thread ? own : s->maxima[slot * TOPK_THREADS + threadIdx.x]);
            if (bits != 0 && (shift == 23 || bits >> 23 == prefix >> 23)) atomicAdd(&s->histogram[bits >> shift & 255u], 1u);
        }
        // All maxima must be counted before the bins are summed.
        __syncthreads();
        find_digit(s, want);
        if (s->in_bin == 0) break;
        prefix |= s->digit << shift;
        want -= s->above;
        // All threads must have read what was found before it is found again.
        __syncthreads();
    }
    return __uint_as_float(max(prefix, 1u));
}

// Step 5 for few keys (k <= held): keeps the k largest at the front; returns the smallest of them.
__device__ inline u64 keep_by_rank(TopkShared *s, u32 held, u32 k) {
    u64 own = 0;
    u32 rank = k;
    // Keys are compared in pairs; 0 is less than any.
    if (threadIdx.x == 0 && held % 2 > 0) s->keys[held] = 0;
    // It must be there before it is read.
    __syncthreads();
    if (threadIdx.x < held) {
        own = s->keys[threadIdx.x];
        rank = 0;
        for (u32 other = 0; other < held; other += 2) {
            Pack<u64> two = load_pack(&s->keys[other]);
            rank += (two.v[0] > own) + (two.v[1] > own);
        }
    }
    // All keys must be compared before any is written.
    __syncthreads();
    if (rank < k) s->keys[rank] = own;
    if (threadIdx.x == 0) s->held = k;
    // All keys must be in their places.
    __syncthreads();
    return s->keys[k - 1];
}

// Step 5: keeps the k largest of `held` keys (held >= k) at the front; returns the smallest of them.
__device__ inline u64 keep_largest(TopkShared *s, u32 held, u32 k) {
    u64 prefix = 0, decided = 0;
    u32 want = k;
    for (int shift = 56; shift >= 0; shift -= 8) {
        s->histogram[threadIdx.x] = 0;
        // All bins must be empty before any is counted.
        __syncthreads();
        for (u32 i = threadIdx.x; i < held; i += TOPK_THREADS) {
            u64 key = s->keys[i];
            if ((key & decided) == prefix) atomicAdd(&s->histogram[(u32)(key >> shift) & 255u], 1u);
        }
        // All keys must be counted before the bins are summed.
        __syncthreads();
        find_digit(s, want);
        prefix |= (u64)s->digit << shift;
        decided |= (u64)255 << shift;
        want -= s->above;
        if (s->in_bin == want) break;
    }
    u64 least = ~(u64)0;
    if (threadIdx.x == 0) s->held = 0;
    for (u32 i = 0; i < held; i += TOPK_THREADS) {
        u64 own = i + threadIdx.x < held ? s->keys[i + threadIdx.x] : 0;
        bool taken = own >= prefix && own != 0;
        if (taken && own < least) least = own;
        // Keys are moved towards the front: these places must have been read, and the counter must be 0.
        __syncthreads();
        append(s, own, taken);
    }
    for (u32 step = WARP / 2; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(FULL, least, step);
        least = other < least ? other : least;
    }
    if (threadIdx.x % WARP == 0) s->minima[threadIdx.x / WARP] = least;
    // All keys must be in their places, and the minima of all warps known.
    __syncthreads();
    for (u32 w = 0; w < TOPK_THREADS / WARP; w++) least = s->minima[w] < least ? s->minima[w] : least;
    return least;
}

// A running softmax total: sum of e^((t - max) / tau).
struct Running {
    float max;
    float total;
    float sum;
};

// Adds eight perturbed scores; -infinity stands for none.
__device__ inline void add_perturbed(Running *r, const float *t, float per_tau) {
    float max = r->max;
    for (u32 i = 0; i < 8; i++) max = fmaxf(max, t[i]);
    // As long as there is no score, infinity would be taken from infinity.
    if (max == -F32_INF) return;
    float total = r->total * exp2f((r->max - max) * per_tau);
    for (u32 i = 0; i < 8; i++) total += exp2f((t[i] - max) * per_tau);
    r->total = total;
    r->max = max;
}

// Brings the running totals of all threads together; the same in every thread.
__device__ inline SoftRow finish_softmax(Running r, float per_tau) {
    __shared__ float maxima[TOPK_THREADS / WARP];
    __shared__ double scratch[32];
    float max = r.max;
    for (u32 step = WARP / 2; step > 0; step /= 2) max = fmaxf(max, __shfl_xor_sync(FULL, max, step));
    if (threadIdx.x % WARP == 0) maxima[threadIdx.x / WARP] = max;
    // The maxima of all warps must be there before they are compared.
    __syncthreads();
    for (u32 w = 0; w < TOPK_THREADS / WARP; w++) max = fmaxf(max, maxima[w]);
    // A thread without a score has total 0 at -infinity: 2^-infinity is 0.
    double total = block_sum((double)r.total * (double)exp2f((r.max - max) * per_tau), scratch);
    double sum = block_sum((double)r.sum, scratch);
    SoftRow out;
    out.max = max;
    out.inv_total = (float)(1.0 / total);
    out.sum = (float)sum;
    out.c = 0.0f;
    return out;
}

// A thread's first score of a chunk, and where its i-th of eight is from there: two packs of four, each beside those of the
// neighbouring threads; in the warm-up four of each of two groups of 128, as the noise is laid out.
template <bool SOFT> __device__ inline u32 first_of(u32 thread) {
    return SOFT ? thread + thread / WARP * (256 - WARP) : thread * 4;
}
template <bool SOFT> __device__ inline u32 place_of(u32 i) {
    return SOFT ? i / 4 * 128 + i % 4 * WARP : i / 4 * (TOPK_CHUNK / 2) + i % 4;
}

// The eight scores from latent j on, with their biases; 0 beyond the last latent.
template <typename T, bool SOFT>
__device__ inline void load_scores(const T *scores, const float *bias, u32 j, u32 m, float *z) {
    if (!SOFT && j + place_of<SOFT>(7) < m) {
        for (u32 i = 0; i < 8; i += 4) {
            Pack<float> add = load_pack(bias + place_of<SOFT>(i));
            load_wide<4>(scores + place_of<SOFT>(i), z + i);
            for (u32 l = 0; l < 4; l++) z[i + l] += add.v[l];
        }
    } else {
        for (u32 i = 0; i < 8; i++) {
            u32 place = place_of<SOFT>(i);
            z[i] = j + place < m ? widen(scores[place]) + bias[place] : 0.0f;
        }
    }
}

// What a score is ranked by; what is not positive is never chosen.
template <bool SIGNED> __device__ inline float rank_of(float z) { return SIGNED ? fabsf(z) : z; }

template <typename T, bool SOFT, bool SIGNED>
__device__ void topk_stream(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 k, const u32 *idle,
                            const Step *step, const Control *control, u32 *index, float *value, u32 *first_entry, u32 *count,
                            u64 *kth, u32 *bad, u32 *fired, const float *given, SoftRow *soft) {
    __shared__ TopkShared s;
    u64 n = blockIdx.x;
    // The lists have a place for k entries of each row; their number fits in 32 bits (`Entries::new`).
    u32 begin = blockIdx.x * k;
    if (threadIdx.x == 0) first_entry[n] = begin;
    if (idle != 0 && control->n_dead == 0) {
        if (threadIdx.x == 0) count[n] = 0;
        return;
    }
    u32 lane = threadIdx.x % WARP;
    u32 dead_after = step->dead_after;
    u32 want = idle != 0 ? k : min(k, step->active);
    float per_tau = per_temperature(step->inv_tau);
    Running running = {-F32_INF, 0.0f, 0.0f};
    const T *row = scores + n * pitch;
    u32 thread = threadIdx.x, slots = 0;
    // Scores of a slot, with those of the other threads.
    u32 span = ((m + TOPK_CHUNK - 1) / TOPK_CHUNK + TOPK_SLOTS - 1) / TOPK_SLOTS * TOPK_CHUNK;
    float zeros = 0.0f;
    u32 j = first_of<SOFT>(thread);
    const T *from = row + j;
    const float *bias = b_lat + j;
    if (thread == 0) s.held = s.listed = 0;
    for (u32 end = span; end < m + span; end += span) {
        float of_slot = 0.0f;
        u32 stop = min(end, m);
        for (; j < stop; j += TOPK_CHUNK, from += TOPK_CHUNK, bias += TOPK_CHUNK) {
            float z[8];
            load_scores<T, SOFT>(from, bias, j, m, z);
            if (idle == 0) {
                for (u32 i = 0; i < 8; i++) of_slot = fmaxf(of_slot, rank_of<SIGNED>(z[i]));
            } else {
                for (u32 i = 0; i < 8; i++) {
                    u32 of = j + place_of<SOFT>(i);
                    if (of < m && idle[of] >= dead_after) of_slot = fmaxf(of_slot, rank_of<SIGNED>(z[i]));
                }
            }
            // 0, unless a score is infinite or no number.
            for (u32 i = 0; i < 8; i++) zeros += 0.0f * z[i];
            if (SOFT) {
                for (u32 g = 0; g < 2; g++) {
                    float u[4];
                    if (given == 0) {
                        Words words = uniform_words(step->seed, step->step, (u32)n, step->group + j / GROUP + g, lane);
                        for (u32 w = 0; w < 4; w++) u[w] = unit(words.w[w]);
                    } else {
                        const float *of_row = given + n * m + j + place_of<SOFT>(g * 4);
                        for (u32 w = 0; w < 4; w++) u[w] = j + place_of<SOFT>(g * 4 + w) < m ? of_row[w * WARP] : 0.0f;
                    }
                    for (u32 w = 0; w < 4; w++) {
                        float positive = fmaxf(z[g * 4 + w], 0.0f);
                        running.sum += positive;
                        z[g * 4 + w] = j + place_of<SOFT>(g * 4 + w) < m ? positive + gumbel(u[w]) : -F32_INF;
                    }
                }
                add_perturbed(&running, z, per_tau);
            }
        }
        s.maxima[slots++ * TOPK_THREADS + thread] = of_slot;
    }
    int infinite = __syncthreads_or(zeros != 0.0f);
    if (threadIdx.x == 0 && bad != 0) bad[n] = infinite != 0;
    if (SOFT) {
        SoftRow of_row = finish_softmax(running, per_tau);
        if (threadIdx.x == 0) soft[n] = of_row;
    }
    float largest = 0.0f;
    for (u32 i = 0; i < slots; i++) largest = fmaxf(largest, s.maxima[i * TOPK_THREADS + thread]);
    float threshold = bound(&s, largest, slots, want);
    for (u32 i = thread; largest >= threshold && i < slots * TOPK_THREADS; i += TOPK_THREADS) {
        if (s.maxima[i] >= threshold) s.slots[atomicAdd(&s.listed, 1u)] = i;
    }
    // All slots must be listed, and their maxima done with, before keys are written over these.
    __syncthreads();
    u32 listed = s.listed, held = 0;
    u64 least = 0;
    for (u32 l = 0; l < listed; l += TOPK_THREADS) {
        // A slot that begins beyond the last latent is none.
        u32 slot = l + thread < listed ? s.slots[l + thread] : TOPK_SLOTS * TOPK_THREADS;
        u32 j = slot / TOPK_THREADS * span + first_of<SOFT>(slot % TOPK_THREADS);
        for (u32 chunk = 0; chunk < span; chunk += TOPK_CHUNK, j += TOPK_CHUNK) {
            float z[8];
            if (j < m) load_scores<T, SOFT>(row + j, b_lat + j, j, m, z);
            for (u32 i = 0; i < 8 && j < m; i++) {
                u32 of = j + place_of<SOFT>(i);
                float rank = rank_of<SIGNED>(z[i]);
                if (rank >= threshold && (idle == 0 || idle[of] >= dead_after)) {
                    s.keys[atomicAdd(&s.held, 1u)] = (u64)__float_as_uint(rank) << 32 | (u32)~of;
                }
            }
            // All keys of the chunk must be counted before the count is looked at ...
            __syncthreads();
            held = s.held;
            // ... and all threads have looked before the next chunk adds to it.
            __syncthreads();
            bool last = l + TOPK_THREADS >= listed && chunk + TOPK_CHUNK >= span;
            if (last ? held >= want : held > TOPK_CAPACITY - TOPK_CHUNK) {
                least = held <= TOPK_FEW ? keep_by_rank(&s, held, want) : keep_largest(&s, held, want);
                threshold = __uint_as_float((u32)(least >> 32));
                held = want;
            }
        }
    }
    // Inverted indices are compared in fours; 0 is less than any. The slots are done with.
    for (u32 e = threadIdx.x; e < (held + 3) / 4 * 4; e += TOPK_THREADS) s.slots[e] = e < held ? (u32)s.keys[e] : 0;
    // They must be there before they are compared.
    __syncthreads();
    for (u32 e = threadIdx.x; e < held; e += TOPK_THREADS) {
        u32 own = s.slots[e], j = ~own, rank = 0;
        for (u32 other = 0; other < held; other += 4) {
            Pack<u32> four = load_pack(&s.slots[other]);
            for (u32 l = 0; l < 4; l++) rank += four.v[l] > own;
        }
        index[begin + rank] = j;
        value[begin + rank] =
            SIGNED ? widen(row[j]) + b_lat[j] : __uint_as_float((u32)(s.keys[e] >> 32));
        if (fired != 0) fired[j] = 1;
    }
    if (threadIdx.x == 0) {
        count[n] = held;
        // With fewer than k positive scores each of them is among the k largest.
        if (kth != 0) kth[n] = held < want ? 0 : least;
    }
}

#define TOPK_STREAM(name, T, SIGNED)                                                                                   \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        name(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 k, const u32 *idle, const Step *step,          \
             const Control *control, u32 *index, float *value, u32 *first, u32 *count, u32 *bad, u32 *fired) {         \
        topk_stream<T, false, SIGNED>(scores, b_lat, m, pitch, k, idle, step, control, index, value, first, count, 0,  \
                                      bad, fired, 0, 0);                                                               \
    }
#define TOPK_SOFTMAX(T, t)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        topk_softmax_##t(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 k, const Step *step,               \
                         const Control *control, u32 *index, float *value, u32 *first, u32 *count, u64 *kth, u32 *bad, \
                         u32 *fired, const float *given, SoftRow *soft) {                                              \
        topk_stream<T, true, false>(scores, b_lat, m, pitch, k, 0, step, control, index, value, first, count, kth,     \
                                    bad, fired, given, soft);                                                          \
    }
TOPK_STREAM(topk_stream_f32, float, false)
TOPK_STREAM(topk_stream_bf16, bf16, false)
TOPK_STREAM(topk_abs_f32, float, true)
TOPK_STREAM(topk_abs_bf16, bf16, true)
TOPK_SOFTMAX(float, f32)
TOPK_SOFTMAX(bf16, bf16)
