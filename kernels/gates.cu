// Weights of a row's candidates in the warm-up, and their gradient: what relaxations over candidates do between the
// selection and the decoder, and after it.
//
//   h_e  = z_e D_e,   D_e = (1 - alpha) w_e + alpha [e in top k]
//   dz_e = dh_e D_e + (G_e - mean G - u_e mean(G u)) / sd z
//   u_e  = (z_e - mean z) / sd z over the row's P candidates; w = 1 and G = 0 where P <= k
//
// and w, G by LapSum. Row n's P candidates are at first[n] .. first[n] + count[n] of all lists, P <= 1024: index has their latents,
// ascending, among all of the model, of which the device has m from the step's group on; score has their positive scores z. value
// gets h, direct D; grad holds dh and becomes dz. Kept for the backward pass: threshold (N), LapSum's b.
// One block per row, of up to 256 threads. A thread owns every blockDim-th candidate, four at most, in registers.
//
// 1. A candidate is in the top k where fewer than k keys are larger (keys as in topk_stream.cu: the lowest index wins a
//    tie). Only then has its latent fired.
// 2. Scores are standardised by sums in float64, so that equal scores have no spread at all.
// 3. LapSum: b by Newton's method inside a bracket, until it moves no more than float32 shows.
// 4. The gradient of the standardisation.
//
// Every sum has a fixed order. Moves 16 N P bytes forwards and 16 backwards.
// Formulas and sources: src/backend/relaxation.rs.
#include "common.cuh"

#define OWN 4u
#define GATE_THREADS 256u
#define LAPSUM_ROUNDS 60u

// f(i, e) for each candidate of the thread: its i-th is the row's e-th. Unrolled, so that arrays stay in registers.
template <typename F> __device__ inline void each_own(u32 p, F f) {
#pragma unroll
    for (u32 i = 0; i < OWN; i++) {
        u32 e = i * blockDim.x + threadIdx.x;
        if (e < p) f(i, e);
    }
}

// Largest value over the threads of a block, the same in every thread. `scratch` as for block_sum.
__device__ inline float block_max(float v, float *scratch) {
    for (u32 step = WARP / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(FULL, v, step));
    // The last reader of an earlier maximum must be done before its scratch is written again.
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = v;
    // The maxima of all warps must be there before they are compared.
    __syncthreads();
    float max = scratch[0];
    for (u32 w = 1; w < blockDim.x / WARP; w++) max = fmaxf(max, scratch[w]);
    return max;
}

// Step 1. Bit i says whether the thread's i-th candidate is in the top k; `at` is the row's first place.
__device__ inline u32 find_top(const u32 *index, const float *score, u32 at, u32 p, u32 k, const Step *step, u32 m,
                               u32 *fired) {
    __shared__ u64 keys[OWN * GATE_THREADS];
    u64 own[OWN] = {0, 0, 0, 0};
    u32 larger[OWN] = {0, 0, 0, 0}, top = 0;
    each_own(p, [&](u32 i, u32 e) {
        own[i] = (u64)__float_as_uint(score[at + e]) << 32 | (u32)~index[at + e];
        keys[e] = own[i];
    });
    // All keys must be there before they are compared.
    __syncthreads();
    for (u32 other = 0; other < p; other++) {
        u64 key = keys[other];
        each_own(p, [&](u32 i, u32) { larger[i] += key > own[i]; });
    }
    each_own(p, [&](u32 i, u32) {
        if (larger[i] >= k) return;
        top |= 1u << i;
        // Several rows may write it, all the same.
        u32 j = ~(u32)own[i] - step->group * GROUP;
        if (j < m) fired[j] = 1;
    });
    return top;
}

// Step 2. Scores z of the thread's candidates and their standardised u; returns 1 / sd, or 0 where all are equal.
__device__ inline double standardise(const float *score, u32 at, u32 p, float *z, float *u, double *scratch) {
    double sum = 0.0, squares = 0.0;
    each_own(p, [&](u32 i, u32 e) {
        z[i] = score[at + e];
        sum += (double)z[i];
    });
    double mean = block_sum(sum, scratch) / p;
    each_own(p, [&](u32 i, u32) { squares += (z[i] - mean) * (z[i] - mean); });
    double variance = block_sum(squares, scratch) / p;
    double inv_sd = variance > 0.0 ? 1.0 / sqrt(variance) : 0.0;
    each_own(p, [&](u32 i, u32) { u[i] = (float)((z[i] - mean) * inv_sd); });
    return inv_sd;
}

// The code from the weights.
__device__ inline void store_code(const Step *step, u32 at, u32 p, u32 top, const float *z, const float *w,
                                  float *direct, float *value) {
    each_own(p, [&](u32 i, u32 e) {
        float factor = step->rest * w[i] + ((top >> i & 1u) != 0 ? step->alpha : 0.0f);
        direct[at + e] = factor;
        value[at + e] = factor * z[i];
    });
}

// Step 4. dh becomes dz, by the gradient g of the standardised scores.
__device__ inline void store_gradients(u32 at, u32 p, const float *direct, const float *u, const float *g,
                                       double inv_sd, double *scratch, float *grad) {
    double sum = 0.0, along = 0.0;
    each_own(p, [&](u32 i, u32) {
        sum += (double)g[i];
        along += (double)g[i] * u[i];
    });
    double mean = block_sum(sum, scratch) / p;
    along = block_sum(along, scratch) / p;
    each_own(p, [&](u32 i, u32 e) {
        float through = (float)((g[i] - mean - u[i] * along) * inv_sd);
        grad[at + e] = direct[at + e] * grad[at + e] + through;
    });
}

// Half the Laplace distribution's weight beyond |u - b| / tau: its distance from 0 or 1, and its slope.
__device__ inline float lap_tail(float u, float b, float inv_tau) { return 0.5f * expf(-fabsf(u - b) * inv_tau); }

// Step 3: b such that the weights add up to k.
__device__ inline float lap_threshold(const Step *step, u32 p, u32 k, const float *u, double *scratch, float *maxima) {
    float tau = step->tau, inv_tau = step->inv_tau, least = F32_INF, most = -F32_INF;
    each_own(p, [&](u32 i, u32) {
        least = fminf(least, u[i]);
        most = fmaxf(most, u[i]);
    });
    // At the ends of this bracket the sum is above and below k, since the tail at ln P is 1 / (2 P).
    float low = -block_max(-least, maxima) - tau * logf((float)p);
    float high = block_max(most, maxima) + tau * logf((float)p);
    float b = 0.5f * (low + high);
    for (u32 round = 0; round < LAPSUM_ROUNDS; round++) {
        double sum = 0.0, slope = 0.0;
        each_own(p, [&](u32 i, u32) {
            double tail = (double)lap_tail(u[i], b, inv_tau);
            sum += u[i] > b ? 1.0 - tail : tail;
            slope += tail;
        });
        double excess = block_sum(sum, scratch) - k;
        slope = block_sum(slope, scratch);
        // Where scores lie far apart the tails between them vanish, and all of a range is as good.
        if (excess == 0.0) break;
        if (excess > 0.0) {
            low = b;
        } else {
            high = b;
        }
        // Newton's step, or the middle where that leaves the bracket.
        float next = b + tau * (float)(excess / slope);
        if (!(next >= low && next <= high)) next = 0.5f * (low + high);
        float moved = fabsf(next - b);
        b = next;
        if (moved <= 2.4e-7f * (fabsf(b) + tau)) break;
    }
    return b;
}

extern "C" __global__ void __launch_bounds__(256)
    gate_weights_lapsum(const u32 *index, const float *score, const u32 *first, const u32 *count, u32 k, const Step *step,
                        u32 m, u32 *fired, float *direct, float *value, float *threshold) {
    __shared__ double scratch[32];
    __shared__ float maxima[32];
    u32 p = count[blockIdx.x];
    u32 at = first[blockIdx.x];
    u32 top = find_top(index, score, at, p, k, step, m, fired);
    float z[OWN], u[OWN], w[OWN] = {1.0f, 1.0f, 1.0f, 1.0f};
    standardise(score, at, p, z, u, scratch);
    if (p > k) {
        float b = lap_threshold(step, p, k, u, scratch, maxima);
        if (threadIdx.x == 0) threshold[blockIdx.x] = b;
        each_own(p, [&](u32 i, u32) {
            float tail = lap_tail(u[i], b, step->inv_tau);
            w[i] = u[i] > b ? 1.0f - tail : tail;
        });
    }
    store_code(step, at, p, top, z, w, direct, value);
}

//   G_j = f_j (v_j - sum_i f_i v_i / sum_i f_i) / tau,  v_j = (1 - alpha) z_j dh_j
extern "C" __global__ void __launch_bounds__(256)
    gate_gradients_lapsum(const float *score, const float *direct, const u32 *first, const u32 *count, u32 k, const Step *step,
                          const float *threshold, float *grad) {
    __shared__ double scratch[32];
    u32 p = count[blockIdx.x];
    u32 at = first[blockIdx.x];
    float z[OWN], u[OWN], g[OWN] = {0.0f, 0.0f, 0.0f, 0.0f};
    double inv_sd = standardise(score, at, p, z, u, scratch);
    if (p > k && inv_sd > 0.0) {
        float b = threshold[blockIdx.x], f[OWN], v[OWN];
        double along = 0.0, total = 0.0;
        each_own(p, [&](u32 i, u32 e) {
            f[i] = lap_tail(u[i], b, step->inv_tau);
            v[i] = step->rest * z[i] * grad[at + e];
            along += (double)f[i] * v[i];
            total += (double)f[i];
        });
        along = block_sum(along, scratch);
        total = block_sum(total, scratch);
        // No slope anywhere is no gradient.
        float middle = total > 0.0 ? (float)(along / total) : 0.0f;
        each_own(p, [&](u32 i, u32) { g[i] = f[i] * (v[i] - middle) * step->inv_tau; });
    }
    store_gradients(at, p, direct, u, g, inv_sd, scratch, grad);
}

// Annealed k: the code is the selection itself, but only the latents of the top k have fired.
extern "C" __global__ void __launch_bounds__(256)
    fire_top(const u32 *index, const float *score, const u32 *first, const u32 *count, u32 k, const Step *step, u32 m,
             u32 *fired) {
    find_top(index, score, first[blockIdx.x], count[blockIdx.x], k, step, m, fired);
}
