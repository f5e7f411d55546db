// The dense half of the warm-up, tile of latents by tile: the weights of the softmax as an operand, and the gradient of
// the scores. Nothing of size N M is kept but the scores: noise and weights are made again from the counter.
//
//   p_nj  = e^((relu(z_nj) + g_nj - max_n) / tau) / total_n
//   h_nj  = (1 - alpha) p_nj S_n + alpha relu(z_nj) [j in top k]
//   dz_nj = [z_nj > 0] (p_nj S_n ((1 - alpha) dh_nj - c_n) / tau + c_n + alpha dh_nj [j in top k])
//
// scores (N, pitch), b_lat (M); a tile holds latents [first, first + cols) of all rows, (N, tile_pitch).
//
// 1. soft_weights: p of a tile, from the scores, the noise made again, and the softmax's largest exponent and total
//    (topk_stream.cu). The decoder takes it as a dense product.
// 2. soft_gradients: from dh of a tile, a dense product, to dz, with p made once more, and h.
// Grid: (N, ceil(cols / 1024)), 256 threads; a warp takes 128 neighbouring latents, as the noise is laid out.
// `kth` is the key of the row's k-th largest score (topk_stream.cu): a latent is in the top k when its key reaches it.
// Moves N cols scores and one or three tiles. Exact and without sums: nothing depends on an order.
// Formula: src/backend/mod.rs.
#include "common.cuh"

// Four latents of one thread: latent number, score and softmax weight.
struct Quad {
    u32 j[4];
    float z[4];
    float p[4];
};

template <typename T>
__device__ inline Quad soft_quad(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 first, const Step *step,
                                 const float *given, SoftRow row) {
    u64 n = blockIdx.x;
    u32 lane = threadIdx.x % WARP;
    u32 group = (first + blockIdx.y * 1024) / GROUP + threadIdx.x / WARP;
    float per_tau = per_temperature(step->inv_tau);
    Words words = uniform_words(step->seed, step->step, (u32)n, step->group + group, lane);
    Quad q;
    for (u32 w = 0; w < 4; w++) {
        u32 j = group * GROUP + w * WARP + lane;
        bool inside = j < m;
        q.j[w] = j;
        q.z[w] = inside ? widen(scores[n * pitch + j]) + b_lat[j] : 0.0f;
        float u = given != 0 && inside ? given[n * m + j] : unit(words.w[w]);
        q.p[w] = exp2f((fmaxf(q.z[w], 0.0f) + gumbel(u) - row.max) * per_tau) * row.inv_total;
    }
    return q;
}

template <typename T>
__device__ void soft_weights(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 first, u32 cols,
                             u32 tile_pitch, const Step *step, const SoftRow *soft, const float *given, T *weights) {
    u64 n = blockIdx.x;
    Quad q = soft_quad(scores, b_lat, m, pitch, first, step, given, soft[n]);
    for (u32 w = 0; w < 4; w++) {
        u32 at = q.j[w] - first;
        if (at < cols) narrow(q.p[w], &weights[n * tile_pitch + at]);
    }
}

// `grad` holds dh without its sparsity part and becomes dz; `code` becomes h.
template <typename T>
__device__ void soft_gradients(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 first, u32 cols,
                               u32 tile_pitch, const Step *step, const SoftRow *soft, const u64 *kth,
                               const float *given, T *grad, T *code) {
    u64 n = blockIdx.x;
    SoftRow row = soft[n];
    Quad q = soft_quad(scores, b_lat, m, pitch, first, step, given, row);
    u64 least = kth[n];
    // Read once: the tiles might overlap it, as far as the compiler knows.
    u32 before = step->group * GROUP;
    for (u32 w = 0; w < 4; w++) {
        u32 at = q.j[w] - first;
        if (at >= cols) continue;
        u64 place = n * tile_pitch + at;
        float z = q.z[w], p = q.p[w];
        bool positive = z > 0.0f;
        bool top = positive && ((u64)__float_as_uint(z) << 32 | (u32)~(q.j[w] + before)) >= least;
        float h = step->rest * p * row.sum + (top ? step->alpha * z : 0.0f);
        float dh = widen(grad[place]) + step->sparsity;
        float dz = p * row.sum * (step->rest * dh - row.c) / step->tau + row.c + (top ? step->alpha * dh : 0.0f);
        narrow(positive ? dz : 0.0f, &grad[place]);
        narrow(h, &code[place]);
    }
}

#define SOFT_TILES(T, t)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        soft_weights_##t(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 first, u32 cols, u32 tile_pitch,   \
                         const Step *step, const SoftRow *soft, const float *given, T *weights) {                      \
        soft_weights<T>(scores, b_lat, m, pitch, first, cols, tile_pitch, step, soft, given, weights);                 \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        soft_gradients_##t(const T *scores, const float *b_lat, u32 m, u32 pitch, u32 first, u32 cols,                 \
                           u32 tile_pitch, const Step *step, const SoftRow *soft, const u64 *kth, const float *given,  \
                           T *grad, T *code) {                                                                         \
        soft_gradients<T>(scores, b_lat, m, pitch, first, cols, tile_pitch, step, soft, kth, given, grad, code);       \
    }
SOFT_TILES(float, f32)
SOFT_TILES(bf16, bf16)
