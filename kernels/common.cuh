// What all kernels share: short names of types, values stored as float32 or bfloat16, sums over a block in a
// fixed order, and the counter-based noise.
//
// No CUDA header is included, so a driver, NVRTC and cuBLAS are all that a machine needs. The same text is compiled
// by g++ for the emulation in tests (SAE_EMULATED), which brings its own threadIdx, barriers and shuffles.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32u
#define FULL 0xffffffffu
// Latents of which the noise has a number each at a time; ranks have whole groups.
#define GROUP 128u
// As `MOST_PREFIXES` in src/spec/prefixes.rs.
#define MOST_PREFIXES 16u
#define F32_INF __uint_as_float(0x7f800000u)
#define F64_NAN __longlong_as_double(0x7ff8000000000000ll)

#ifndef SAE_EMULATED
// Dynamic shared memory of a block, aligned to 16 bytes.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// Integers that name a type of stored values.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(bf16 v) { return __uint_as_float((u32)v.bits << 16); }
#ifdef SAE_EMULATED
__device__ inline float widen(f16 v) { return emulated_f16(v.bits); }
#else
__device__ inline float widen(f16 v) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(v.bits));
    return out;
}
#endif

// Rounds to the nearest, ties to even; NaN stays NaN.
__device__ inline void narrow(float v, float *out) { *out = v; }
__device__ inline void narrow(float v, bf16 *out) {
    u32 bits = __float_as_uint(v);
    u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out->bits = v != v ? 0x7fc0 : (u16)rounded;
}

// Value `at` of rows stored as float32 (kind 0), float16 (1) or bfloat16 (2). All threads take the same branch.
__device__ inline float stored(const void *data, u32 kind, u64 at) {
    if (kind == 0) return ((const float *)data)[at];
    return kind == 1 ? widen(((const f16 *)data)[at]) : widen(((const bf16 *)data)[at]);
}

// Values that one thread moves at a time: sixteen bytes, unless a count is given.
template <typename T, u32 COUNT = 16 / sizeof(T)> struct alignas(COUNT * sizeof(T)) Pack {
    static const u32 N = COUNT;
    T v[COUNT];
};

// Loads and stores of one pack; the address must be a multiple of its bytes.
template <typename T, u32 COUNT = 16 / sizeof(T)> __device__ inline Pack<T, COUNT> load_pack(const T *p) {
    return *(const Pack<T, COUNT> *)p;
}
template <typename T, u32 COUNT> __device__ inline void store_pack(T *p, Pack<T, COUNT> v) {
    *(Pack<T, COUNT> *)p = v;
}

// Sixteen bytes as the words they are, and values of a pack in them.
typedef Pack<u32> Raw;
template <typename T> __device__ inline Raw load_raw(const T *p) { return load_pack((const u32 *)p); }

// The values of packs as floats; the address must be a multiple of the pack's bytes. Of two bfloat16 in a word the first is in the
// lower half: one operation widens either.
template <u32 WORDS> __device__ inline void widen(const Pack<u32, WORDS> &words, const bf16 *, float *out) {
    for (u32 w = 0; w < WORDS; w++) {
        out[2 * w] = __uint_as_float(words.v[w] << 16);
        out[2 * w + 1] = __uint_as_float(words.v[w] & 0xffff0000u);
    }
}
template <u32 WORDS> __device__ inline void widen(const Pack<u32, WORDS> &words, const float *, float *out) {
    for (u32 w = 0; w < WORDS; w++) out[w] = __uint_as_float(words.v[w]);
}
template <u32 COUNT, typename T> __device__ inline void load_wide(const T *p, float *out) {
    widen(load_pack<u32, COUNT * sizeof(T) / 4>((const u32 *)p), p, out);
}

// Sum over the lanes of a warp, the same in every lane, always in the same order.
template <typename S> __device__ inline S warp_sum(S v) {
    for (u32 step = WARP / 2; step > 0; step /= 2) v += __shfl_xor_sync(FULL, v, step);
    return v;
}

// Sum over the threads of a block (up to 1024), the same in every thread, always in the same order.
// `scratch` is shared memory for 32 values that nothing else uses meanwhile.
template <typename S> __device__ inline S block_sum(S v, S *scratch) {
    v = warp_sum(v);
    // The last reader of an earlier sum must be done before its scratch is written again.
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = v;
    // The sums of all warps must be there before they are added.
    __syncthreads();
    S sum = scratch[0];
    for (u32 w = 1; w < blockDim.x / WARP; w++) sum += scratch[w];
    return sum;
}

// Philox 4x32-10 (Salmon et al. 2011), as src/noise.rs: the same words from the same counter and key.
struct Words {
    u32 w[4];
};
__device__ inline Words philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
    for (u32 round = 0; round < 10; round++) {
        u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    Words out;
    out.w[0] = c0;
    out.w[1] = c1;
    out.w[2] = c2;
    out.w[3] = c3;
    return out;
}

// The four uniform words of latents `group * 128 + lane + {0, 32, 64, 96}` of a row at a step.
__device__ inline Words uniform_words(u64 seed, u64 step, u32 row, u32 group, u32 lane) {
    return philox(32 * group + lane, row, (u32)step, (u32)(step >> 32), (u32)seed, (u32)(seed >> 32));
}

// U on [0, 1) from the 24 high bits of a word.
__device__ inline float unit(u32 word) { return (float)(word >> 8) * (1.0f / 16777216.0f); }

// -ln(-ln(U + 1e-9) + 1e-9). Above 1/2 the sum would lose the 1e-9, and with it the largest noise values; there
// ln(U + 1e-9) = ln(U) + 1e-9 / U, and where 1 / U is not 1 the logarithm is so much larger that it does not matter.
// The outer logarithm may be the fast one: its error, at most 2^-21.4 between 1/2 and 2 and a few roundings elsewhere
// (CUDA's programming guide), is absolute in the noise, as is that of the sum with the score.
__device__ inline float gumbel(float u) {
    const float eps = 1e-9f;
    bool high = u > 0.5f;
    float inner = logf(high ? u : u + eps) + (high ? eps : 0.0f);
    return -__logf(eps - inner);
}

// e^(t / tau) for many t: 2^(t per_tau), where per_tau = per_temperature(1 / tau). A power of two is one instruction.
__device__ inline float per_temperature(float inv_tau) { return inv_tau * 1.44269504f; }

// The row of the thread's warp; n_rows or more where it has none.
__device__ inline u64 row_of_warp() { return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; }

// Sum of `own` over the lanes up to the caller's.
template <typename T> __device__ inline T lanes_up_to(T own) {
    for (u32 step = 1; step < WARP; step *= 2) {
        T left = __shfl_up_sync(FULL, own, step);
        if (threadIdx.x % WARP >= step) own += left;
    }
    return own;
}

// Sum of `v` over the threads before this one, of a block of 1024; `all` gets that over all. `warps` is shared memory for 32
// values.
template <typename T> __device__ inline T sum_before(T v, T *warps, T *all) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    T up_to = lanes_up_to(v);
    // The sums before must have been read by all threads.
    __syncthreads();
    if (lane == WARP - 1) warps[warp] = up_to;
    // The sums of all warps must be there before they are added.
    __syncthreads();
    T of_warps = lanes_up_to(warps[lane]), others = __shfl_sync(FULL, of_warps, warp > 0 ? warp - 1 : 0);
    *all = __shfl_sync(FULL, of_warps, WARP - 1);
    return (warp > 0 ? others : 0) + up_to - v;
}

// How lists of entries by latent are cut into runs: those of more than `length` entries, in order of latents, as long as there
// is room for `most` runs in all. `length` is the largest number where none is cut, and the rest null then.
struct Cut {
    u32 length;
    u32 most;
    u32 *first;  // (M + 1) the first run of each long list; then the number of runs
    u32 *latent; // (most) the latent of each run
};

// Runs that a list of so many entries would be cut into; 0 where it is not long.
__device__ inline u32 runs_of(Cut cut, u32 held) {
    return held > cut.length ? (held + cut.length - 1) / cut.length : 0;
}

// Runs that the list of latent j is cut into; 0 where one block takes it whole.
__device__ inline u32 cut_into(Cut cut, u32 j, u32 held) {
    u32 runs = runs_of(cut, held);
    return runs > 0 && cut.first[j] + runs <= cut.most ? runs : 0;
}

// Entries that take latent_update as many instructions as what is the same for each latent (TRAFFIC.md). In bytes it is about
// 6 to 12: Adam moves 6 rows of floats of a matrix to and from memory, an entry 2 rows of operands from cache.
#define ENTRIES_A_LATENT 9u

// A `Cut` among the arguments of a kernel.
#define CUT_ARGS(of) u32 of##length, u32 of##most, u32 *of##first_run, u32 *of##run_latent
#define CUT(of) {of##length, of##most, of##first_run, of##run_latent}

// The host's numbers of one step; mirrored field by field by `StepParams` in src/backend/cuda/params.rs.
struct Step {
    u64 seed;         // key of the noise
    u64 step;         // from 0
    double l1;        // weight of the penalty in the loss in the data's unit
    double aux_coef;  // weight of the auxiliary loss
    double clip_norm; // largest gradient norm; 0 is none
    double loss_scale; // gradients are those of this many times the loss
    double weight;     // weight of the penalty in `loss_scale` times the loss; a factor on one that is carried
    float alpha;      // share of the hard code
    float rest;       // 1 - alpha
    float tau;        // temperature
    float sparsity;   // l1 / (N M)
    float beta1;
    float beta2;
    float one_minus_beta1;
    float one_minus_beta2;
    float rate;      // lr / (1 - beta1^t)
    float fix2;      // 1 / (1 - beta2^t)
    float adam_eps;  // outside the root
    float keep;      // 1 - lr * weight_decay, on the matrices
    float ema_keep;  // decay of the moving average at this step
    float inv_tau;   // 1 / tau
    u32 n_rows;      // N
    u32 dead_after;  // rows without firing
    u32 slot;        // place of this step in the ring of statistics
    u32 active;      // entries a row may hold; less than their lists have room for while k is annealed
    u32 k;           // active latents a row is to have
    u32 penalty;     // as PENALTY_
    float reach;     // half the width of the kernel of thresholds
    float inv_bandwidth; // 1 / its width
    float furthest;  // that all thresholds move together, or 0
    u32 group;       // groups of 128 latents before the first of this device
};

// What the device keeps of the steps; mirrored by `Outcome` in src/backend/cuda/params.rs.
struct Outcome {
    double loss;
    double mse;
    double l1;
    double aux;
    double grad_norm; // NaN where it was not needed
};

// The penalties of `Step`, numbered as `Penalty` in src/spec/mod.rs.
#define PENALTY_MEAN_CODE 0u
#define PENALTY_L1 1u
#define PENALTY_L0_TARGET 2u
#define PENALTY_L0 3u
#define PENALTY_L0_ROWS 4u

// Facts that kernels of a step hand to later ones; mirrored by `Control` in src/backend/cuda/params.rs.
struct Control {
    u32 stopped;       // a loss was not finite: nothing is changed any more
    u32 n_dead;        // latents that the auxiliary loss may use
    float clip;        // the gradient's factor from clipping
    float per_entry;   // what an active latent's dh gets, times the length of its decoder row (PENALTY_L1)
    double slope;      // the penalty's gradient by a row's number of active latents, L0_n ...
    double slope_rows; // ... and this times L0_n - k
    float carried;     // the carried weight after this step, where one seeks k
    float common;      // what is added to every threshold
};

// What the softmax of a row needs beside its scores.
struct SoftRow {
    float max;       // largest perturbed score
    float inv_total; // 1 / sum of exponentials
    float sum;       // S, the sum of positive scores
    float c;         // (1 - alpha) sum_j p_j dh_j, known once the row is decoded
};

// Loss parts of one row; code is the sum of its code.
struct RowLoss {
    double squared;
    double code;
    double aux;
};

// Quality of one row's reconstruction.
struct RowQuality {
    double squared;
    double absolute;
    double cosine;
    u64 active;
};

// Addresses of all tensors of a model; mirrored by `ModelView` in src/backend/cuda/params.rs. A tied model has no
// decoder of its own, a run without moving average no averages: null.
struct Tensor {
    float *w; // weights
    float *m; // first moment
    float *v; // second moment
    float *e; // moving average, or null
};
struct Model {
    Tensor enc; // (M, pitch)
    Tensor dec; // (M, pitch), or null
    Tensor lat; // (M)
    Tensor pre; // (pitch)
    Tensor threshold; // (M), or null
    bf16 *enc_copy; // rounded weights for products, or null where these use the weights themselves
    bf16 *dec_copy;
};

// Adam (Kingma & Ba 2015) with decoupled weight decay (Loshchilov & Hutter 2019); returns the new weight.
__device__ inline float adam(const Step *s, float clip, float keep, float w, float *m, float *v, float grad) {
    float g = grad * clip;
    float m1 = s->beta1 * *m + s->one_minus_beta1 * g;
    float v1 = s->beta2 * *v + s->one_minus_beta2 * (g * g);
    *m = m1;
    *v = v1;
    return keep * w - s->rate * m1 / (sqrtf(v1 * s->fix2) + s->adam_eps);
}

// average = keep average + (1 - keep) w
__device__ inline float averaged(float keep, float average, float w) { return keep * average + (1.0f - keep) * w; }
