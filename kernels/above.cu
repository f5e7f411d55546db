// Codes of scores above thresholds, those of the latents or 0 for all of them, and their gradients.
//
//   z_j  = scores_j + b_lat_j;  h_j = z_j [z_j > t_j],  L0_n = number of them;  t_j = 0 where `thresholds` is null
//   dz_j = [z_j > t_j] (dh_j + per_entry |W_dec_j|)                  the second part where `lengths` are given
//   dt_j = - sum_n K((z_nj - t_j) / eps) (t_j dh_nj + c_n) / eps,  K(u) = [|u| < 1/2],  c_n = slope + slope_rows (L0_n - k)
//
// scores (N, pitch), b_lat, thresholds, lengths (M). A row may have any number of active latents, so the code is dense: a
// tile holds latents [first, first + cols) of all rows, (N, tile_pitch), and the decoder and the gradients are dense products.
//
// 1. above_count, one block a row: L0_n, which latents fire, and the row's part of the penalty.
// 2. above_tile: the code of a tile, which the decoder takes as a dense product.
// 3. above_gradients: from dh of a tile, a dense product, to dz, with the code again and each row's part of dt.
// 2 and 3: grid (N, ceil(cols / 1024)), 256 threads, four latents a thread. Where the penalty has lengths, row_lengths goes first,
// a warp a row of W_dec.
// Reads the scores once each; above_gradients moves three tiles, four where thresholds are trained.
// Formulas and sources: src/backend/mod.rs.
#include "common.cuh"

// Active latents of each row into `active` (N), and whether a score is not finite into `bad` (N). In training a latent that is
// active on any row has its flag in `fired` set, and the row's sum of h_j |W_dec_j| (of h_j without lengths) goes to `loss`; in
// an evaluation `fired_rows` counts the rows. Those that are null are left out.
template <typename T>
__device__ void above_count(const T *scores, const float *b_lat, const float *thresholds, const float *lengths, u32 m,
                            u32 pitch, u32 *active, u32 *bad, u32 *fired, u32 *fired_rows, RowLoss *loss) {
    __shared__ double scratch[32];
    __shared__ u32 counts[32];
    u64 n = blockIdx.x;
    u32 count = 0;
    float zeros = 0.0f;
    double code = 0.0;
    for (u32 j = threadIdx.x; j < m; j += blockDim.x) {
        float z = widen(scores[n * pitch + j]) + b_lat[j];
        // 0, unless a score is infinite or no number.
        zeros += 0.0f * z;
        if (!(z > (thresholds != 0 ? thresholds[j] : 0.0f))) continue;
        count++;
        code += (double)z * (lengths != 0 ? lengths[j] : 1.0f);
        // Several rows may write it, all the same; counts have no order.
        if (fired != 0) fired[j] = 1;
        if (fired_rows != 0) atomicAdd(&fired_rows[j], 1u);
    }
    int infinite = __syncthreads_or(zeros != 0.0f);
    count = block_sum(count, counts);
    code = block_sum(code, scratch);
    if (threadIdx.x != 0) return;
    active[n] = count;
    bad[n] = infinite != 0;
    if (loss != 0) loss[n].code = code;
}

// f(latent, place in the tile) for each latent of the tile that the thread has.
template <typename F> __device__ inline void each_place(u32 first, u32 cols, u32 tile_pitch, F f) {
    for (u32 w = 0; w < 4; w++) {
        u32 at = blockIdx.y * 1024 + w * 256 + threadIdx.x;
        if (at < cols) f(first + at, (u64)blockIdx.x * tile_pitch + at);
    }
}

// The code of a tile.
template <typename T>
__device__ void above_tile(const T *scores, const float *b_lat, const float *thresholds, u32 pitch, u32 first, u32 cols,
                           u32 tile_pitch, T *code) {
    u64 n = blockIdx.x;
    each_place(first, cols, tile_pitch, [&](u32 j, u64 place) {
        float z = widen(scores[n * pitch + j]) + b_lat[j];
        narrow(z > (thresholds != 0 ? thresholds[j] : 0.0f) ? z : 0.0f, &code[place]);
    });
}

// `grad` holds dh of the squared error and becomes dz; `code` becomes h; `edge`, where thresholds are trained, a row's part of dt.
template <typename T>
__device__ void above_gradients(const T *scores, const float *b_lat, const float *thresholds, const float *lengths, u32 pitch,
                                u32 first, u32 cols, u32 tile_pitch, const u32 *active, const Step *step,
                                const Control *control, T *grad, T *code, float *edge) {
    u64 n = blockIdx.x;
    float slope = (float)(control->slope + control->slope_rows * ((double)active[n] - step->k));
    each_place(first, cols, tile_pitch, [&](u32 j, u64 place) {
        float z = widen(scores[n * pitch + j]) + b_lat[j], dh = widen(grad[place]);
        float threshold = thresholds != 0 ? thresholds[j] : 0.0f;
        bool above = z > threshold;
        if (edge != 0) {
            bool near = fabsf(z - threshold) < step->reach;
            edge[place] = near ? -(threshold * dh + slope) * step->inv_bandwidth : 0.0f;
        }
        if (lengths != 0) dh += control->per_entry * lengths[j];
        narrow(above ? dh : 0.0f, &grad[place]);
        narrow(above ? z : 0.0f, &code[place]);
    });
}

// Lengths of the rows of a matrix (M, pitch) of D columns; one warp a row.
extern "C" __global__ void __launch_bounds__(256)
    row_lengths(const float *matrix, u32 m, u32 d, u32 pitch, float *lengths) {
    u32 j = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (j >= m) return;
    double squares = 0.0;
    for (u32 i = threadIdx.x % WARP; i < d; i += WARP) {
        double w = (double)matrix[(u64)j * pitch + i];
        squares += w * w;
    }
    squares = warp_sum(squares);
    if (threadIdx.x % WARP == 0) lengths[j] = (float)sqrt(squares);
}

#define ABOVE(T, t)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        above_count_##t(const T *scores, const float *b_lat, const float *thresholds, const float *lengths, u32 m,     \
                        u32 pitch, u32 *active, u32 *bad, u32 *fired, u32 *fired_rows, RowLoss *loss) {                \
        above_count<T>(scores, b_lat, thresholds, lengths, m, pitch, active, bad, fired, fired_rows, loss);            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        above_tile_##t(const T *scores, const float *b_lat, const float *thresholds, u32 pitch, u32 first, u32 cols,   \
                       u32 tile_pitch, T *code) {                                                                      \
        above_tile<T>(scores, b_lat, thresholds, pitch, first, cols, tile_pitch, code);                                \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        above_gradients_##t(const T *scores, const float *b_lat, const float *thresholds, const float *lengths,        \
                            u32 pitch, u32 first, u32 cols, u32 tile_pitch, const u32 *active, const Step *step,       \
                            const Control *control, T *grad, T *code, float *edge) {                                   \
        above_gradients<T>(scores, b_lat, thresholds, lengths, pitch, first, cols, tile_pitch, active, step, control,  \
                           grad, code, edge);                                                                          \
    }
ABOVE(float, f32)
ABOVE(bf16, bf16)
