// Exact top-k of each row of scores in one pass over memory, whatever the row's length; in the warm-up the same pass
// gives the softmax its largest exponent, its total and the sum of positive scores.
//
//   z_j = scores_j + b_lat_j;  index, value = the (up to k) positive ones among the k largest z, by index
//   topk_abs: the k of largest |z|, but for zeros, with their signs
//   t_j = relu(z_j) + g_j;     max = max_j t_j,  total = sum_j e^((t_j - max) / tau),  sum = sum_j relu(z_j)
//
// scores (N, pitch), b_lat (M), index and value (N, k); row n's entries are at first[n] .. first[n] + count[n].
// 1 <= k <= 1024. A step may want fewer than the lists have room for: min(k, step->active), read here so that an annealed k changes no launch. With `idle`, only latents
// idle for at least `dead_after` rows take part, and nothing happens while there are none.
// One block of 256 threads a row. A thread takes eight scores of a chunk at a time.
//
// 1. A key is (bits of z or |z|, inverted index): positive floats order as their bits do, and the lowest index wins a tie.
//    Keys are all different, so that the k largest are one set, in whatever order they arrive.
// 2. Scores above the threshold are appended to shared memory as keys, chunk by chunk of 2048 scores.
// 3. Once k are held, and whenever the next chunk might not fit, the k largest are kept: a radix select, 8 bits a pass
//    from the top, that ends as soon as a digit's bin is wanted whole. The smallest score kept is the new threshold:
//    what lies below it can not be among the k largest of the row, nor what equals it and comes later.
// 4. What is held at the end, at most k, is written in order of index: its rank is counted. A key of |z| has no sign, so
//    that the score is read once more.
//
// Ties go to the lowest index; the result does not depend on the order of atomics. Scores that are not finite set
// `bad`. Reads each score once: N M values, 4 M of b_lat from cache; writes 8 N k bytes.
// Idea of the threshold on a stream: the queue of a k-selection (Johnson et al. 2017); of the radix select: Alabi et
// al. 2012.
#include "common.cuh"

#define TOPK_THREADS 256u
#define TOPK_CHUNK 2048u
#define TOPK_CAPACITY 3072u
#define TOPK_OWN (TOPK_CAPACITY / TOPK_THREADS)

struct TopkShared {
    u64 keys[TOPK_CAPACITY];
    u64 minima[TOPK_THREADS / WARP];
    // Away from the digit and what goes with it: the compiler reads neighbours as one vector, and a read of `held` on
    // the way would race with the thread that sets it.
    u32 held;
    u32 histogram[256];
    u32 warp_totals[TOPK_THREADS / WARP];
    u32 digit;
    u32 above;
    u32 in_bin;
};

// Appends those keys of each thread whose bit is set in `takes`; all lanes of a warp call it.
template <u32 COUNT> __device__ inline void append(TopkShared *s, const u64 *keys, u32 takes) {
    u32 lane = threadIdx.x % WARP, own = __popc(takes), up_to = lanes_up_to(own);
    u32 base = 0;
    // One atomic a warp; the order of warps does not matter, since keys are ordered later.
    if (lane == WARP - 1 && up_to > 0) base = atomicAdd(&s->held, up_to);
    u32 at = __shfl_sync(FULL, base, WARP - 1) + up_to - own;
    for (u32 i = 0; i < COUNT; i++) {
        if (takes >> i & 1) s->keys[at++] = keys[i];
    }
}

// Step 3: finds the digit of the `want`-th largest key among those counted in the histogram.
__device__ inline void find_digit(TopkShared *s, u32 want) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // From the largest digit down, so that the running sum counts the keys above.
    u32 bin = 255u - threadIdx.x, here = s->histogram[bin], sum = lanes_up_to(here);
    if (lane == WARP - 1) s->warp_totals[warp] = sum;
    // The totals of all warps must be there before they are added.
    __syncthreads();
    for (u32 w = 0; w < warp; w++) sum += s->warp_totals[w];
    if (sum - here < want && want <= sum) {
        s->digit = bin;
        s->above = sum - here;
        s->in_bin = here;
    }
    // The one thread that found the digit must have written it.
    __syncthreads();
}

// Step 3: keeps the k largest of `held` keys (held >= k) at the front; returns the smallest of them.
__device__ inline u64 keep_largest(TopkShared *s, u32 held, u32 k) {
    u64 own[TOPK_OWN] = {};
    for (u32 i = 0; i < TOPK_OWN && i * TOPK_THREADS < held; i++) {
        u32 at = i * TOPK_THREADS + threadIdx.x;
        if (at < held) own[i] = s->keys[at];
    }
    u64 prefix = 0, decided = 0;
    u32 want = k;
    for (int shift = 56; shift >= 0; shift -= 8) {
        s->histogram[threadIdx.x] = 0;
        // All bins must be empty before any is counted.
        __syncthreads();
        for (u32 i = 0; i < TOPK_OWN && i * TOPK_THREADS < held; i++) {
            // An empty place holds 0, which is no key.
            if (own[i] != 0 && (own[i] & decided) == prefix) {
                atomicAdd(&s->histogram[(u32)(own[i] >> shift) & 255u], 1u);
            }
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
    u32 takes = 0;
    for (u32 i = 0; i < TOPK_OWN && i * TOPK_THREADS < held; i++) {
        if (own[i] == 0 || own[i] < prefix) continue;
        takes |= 1u << i;
        least = own[i] < least ? own[i] : least;
    }
    if (threadIdx.x == 0) s->held = 0;
    // Keys were copied before the first histogram; the counter must be 0 before it is added to.
    __syncthreads();
    append<TOPK_OWN>(s, own, takes);
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

// The latent of a thread's i-th score of eight in the chunk that starts at `first`: two packs of four, each beside those
// of the neighbouring threads; in the warm-up four of each of two groups of 128, as the noise is laid out.
template <bool SOFT> __device__ inline u32 latent_of(u32 first, u32 i) {
    if (!SOFT) return first + i / 4 * (TOPK_CHUNK / 2) + threadIdx.x * 4 + i % 4;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    return first + (warp * 2 + i / 4) * 128 + i % 4 * WARP + lane;
}

// A thread's eight scores of a chunk, with their biases; 0 beyond the last latent.
template <typename T, bool SOFT>
__device__ inline void load_scores(const T *row, const float *b_lat, u32 m, u32 first, float *z) {
    if (!SOFT && first + TOPK_CHUNK <= m) {
        for (u32 i = 0; i < 8; i += 4) {
            u32 j = latent_of<SOFT>(first, i);
            Pack<T, 4> scores = load_pack<T, 4>(row + j);
            Pack<float> bias = load_pack(b_lat + j);
            for (u32 l = 0; l < 4; l++) z[i + l] = widen(scores.v[l]) + bias.v[l];
        }
    } else {
        for (u32 i = 0; i < 8; i++) {
            u32 j = latent_of<SOFT>(first, i);
            z[i] = j < m ? widen(row[j]) + b_lat[j] : 0.0f;
        }
    }
}

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
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 dead_after = step->dead_after;
    u32 want = idle != 0 ? k : min(k, step->active);
    float per_tau = per_temperature(step->inv_tau);
    Running running = {-F32_INF, 0.0f, 0.0f};
    float threshold = 0.0f, zeros = 0.0f;
    u64 least = 0;
    u32 held = 0;
    if (threadIdx.x == 0) s.held = 0;
    // The counter must be 0 before the first key is appended.
    __syncthreads();
    for (u32 first = 0; first < m; first += TOPK_CHUNK) {
        float z[8];
        u64 keys[8];
        u32 takes = 0;
        load_scores<T, SOFT>(scores + n * pitch, b_lat, m, first, z);
        for (u32 i = 0; i < 8; i++) {
            u32 j = latent_of<SOFT>(first, i);
            float rank = SIGNED ? fabsf(z[i]) : z[i];
            keys[i] = (u64)__float_as_uint(rank) << 32 | (u32)~j;
            if (rank > threshold && (idle == 0 || idle[j] >= dead_after)) takes |= 1u << i;
            // 0, unless a score is infinite or no number.
            zeros += 0.0f * z[i];
        }
        if (__any_sync(FULL, takes)) append<8>(&s, keys, takes);
        if (SOFT) {
            for (u32 g = 0; g < 2; g++) {
                u32 group = first / 128 + warp * 2 + g;
                Words words = uniform_words(step->seed, step->step, (u32)n, group, lane);
                for (u32 w = 0; w < 4; w++) {
                    u32 j = group * 128 + w * WARP + lane;
                    float u = given != 0 && j < m ? given[n * m + j] : unit(words.w[w]);
                    float positive = fmaxf(z[g * 4 + w], 0.0f);
                    running.sum += positive;
                    z[g * 4 + w] = j < m ? positive + gumbel(u) : -F32_INF;
                }
            }
            add_perturbed(&running, z, per_tau);
        }
        // All keys of the chunk must be counted before the count is looked at ...
        __syncthreads();
        held = s.held;
        bool more = first + TOPK_CHUNK < m;
        // ... and all threads have looked before the next chunk adds to it.
        __syncthreads();
        bool full = threshold == 0.0f || held > TOPK_CAPACITY - TOPK_CHUNK;
        if (more ? held >= want && full : held > want) {
            // Also the row's k-th largest key, unless a later chunk has a larger one: then this happens again.
            least = keep_largest(&s, held, want);
            threshold = __uint_as_float((u32)(least >> 32));
            held = want;
        }
    }
    for (u32 e = threadIdx.x; e < held; e += TOPK_THREADS) {
        u32 j = ~(u32)s.keys[e], rank = 0;
        for (u32 other = 0; other < held; other++) rank += ~(u32)s.keys[other] < j;
        index[begin + rank] = j;
        value[begin + rank] =
            SIGNED ? widen(scores[n * pitch + j]) + b_lat[j] : __uint_as_float((u32)(s.keys[e] >> 32));
        if (fired != 0) fired[j] = 1;
    }
    if (threadIdx.x == 0) {
        count[n] = held;
        if (kth != 0) kth[n] = least;
    }
    int infinite = __syncthreads_or(zeros != 0.0f);
    if (threadIdx.x == 0 && bad != 0) bad[n] = infinite != 0;
    if (SOFT) {
        SoftRow row = finish_softmax(running, per_tau);
        if (threadIdx.x == 0) soft[n] = row;
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
