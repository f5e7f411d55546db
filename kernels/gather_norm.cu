// Rows of the batch, normalised, as the encoder's operand.
//
//   mu = mean_j x_j,  std = sqrt(sum_j (x_j - mu)^2 / (D - 1)),  input = (x - mu) / (std + eps) - b_pre
//   without normalisation: mu = 0, std = 1, input = x - b_pre
//
// data (rows of the data set, D) in its stored type (kind), b_pre (pitch), input (N, pitch) with zeros beyond D.
// A warp a row; a lane takes every 32nd column.
// 1. mean, 2. squares about the mean, 3. the operand. Sums in float64, in a fixed order: rows whose offset is far
// larger than their spread keep their digits. Moves N D stored values (from cache after the first of three reads)
// and N pitch operands. Formula: per-sample LayerNorm with unbiased deviation and epsilon outside the root.
#include "common.cuh"

template <typename T>
__device__ void gather_norm(const void *data, u32 kind, const u32 *rows, u32 n_rows, const float *b_pre, u32 d, u32 pitch,
                            u32 normalize, float eps, T *input, double *mean, float *std) {
    u32 lane = threadIdx.x % WARP;
    u64 n = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (n >= n_rows) return;
    u64 x = (u64)rows[n] * d;
    double mu = 0.0;
    float sigma = 1.0f, scale = 1.0f;
    if (normalize) {
        double sum = 0.0;
        for (u32 i = lane; i < d; i += WARP) sum += (double)stored(data, kind, x + i);
        mu = warp_sum(sum) / d;
        double squares = 0.0;
        for (u32 i = lane; i < d; i += WARP) {
            double centered = (double)stored(data, kind, x + i) - mu;
            squares += centered * centered;
        }
        sigma = (float)sqrt(warp_sum(squares) / (d - 1.0));
        scale = (float)(1.0 / ((double)sigma + eps));
    }
    for (u32 i = lane; i < pitch; i += WARP) {
        float v = i < d ? (float)((double)stored(data, kind, x + i) - mu) * scale - b_pre[i] : 0.0f;
        narrow(v, &input[n * pitch + i]);
    }
    if (lane == 0) {
        mean[n] = mu;
        std[n] = sigma;
    }
}

#define GATHER_NORM(T, t)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        gather_norm_##t(const void *data, u32 kind, const u32 *rows, u32 n_rows, const float *b_pre, u32 d, u32 pitch, \
                        u32 normalize, float eps, T *input, double *mean, float *std) {                                \
        gather_norm<T>(data, kind, rows, n_rows, b_pre, d, pitch, normalize, eps, input, mean, std);                   \
    }
GATHER_NORM(float, f32)
GATHER_NORM(bf16, bf16)

// Weights rounded to bfloat16: the operands' copy, `count` values.
extern "C" __global__ void __launch_bounds__(256) narrow_copy_bf16(const float *from, bf16 *to, u64 count) {
    u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) narrow(from[i], &to[i]);
}
