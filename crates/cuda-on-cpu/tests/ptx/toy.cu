// Small kernels that test the interpreter of PTX itself: right ones, and one for each fault that it must report.
#include "common.cuh"

// ---- right

// out[b] = sum of the values of block b; lanes leave the loop at different times.
extern "C" __global__ void __launch_bounds__(256) total(float *out, const float *x, u32 n) {
    __shared__ float scratch[WARP];
    float sum = 0.0f;
    for (u32 i = blockIdx.x + gridDim.x * threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

extern "C" __global__ void gumbels(float *out, const float *u, u32 n) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n) out[at] = gumbel(u[at]);
}

extern "C" __global__ void exponentials(float *out, const float *x, u32 n) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n) out[at] = expf(x[at]);
}

extern "C" __global__ void halves(float *out, const u32 *x, u32 n) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    f16 v;
    v.bits = (u16)x[at];
    if (at < n) out[at] = widen(v);
}

// Every thread sets the same flag, and counts itself; rows of four values are stored at once.
extern "C" __global__ void flags(u32 *out, const u32 *x, u32 n) {
    u32 v = x[threadIdx.x];
    if (v != 0) out[0] = 7;
    atomicAdd(&out[1], 1u);
    Pack<u32> pack;
    for (u32 i = 0; i < 4; i++) pack.v[i] = v + i;
    store_pack(out + 8 + 4 * (blockIdx.x * blockDim.x + threadIdx.x), pack);
    if (n == 0) out[2] = 1;
}

// The sum of the lower lanes' values, and the value of another lane.
extern "C" __global__ void lanes(u32 *out, const u32 *x, u32 n) {
    u32 v = x[threadIdx.x], lane = threadIdx.x % WARP;
    for (u32 step = 1; step < WARP; step *= 2) {
        u32 below = __shfl_up_sync(FULL, v, step);
        if (lane >= step) v += below;
    }
    out[threadIdx.x] = v;
    out[n + threadIdx.x] = __shfl_sync(FULL, v, x[threadIdx.x] % WARP);
    out[2 * n + threadIdx.x] = __ballot_sync(FULL, x[threadIdx.x] % 3 == 0);
    out[3 * n + threadIdx.x] = (u32)__syncthreads_or(x[threadIdx.x] == 77);
}

// Reads of shared memory a stride apart.
extern "C" __global__ void strides(float *out, const float *x, u32 n) {
    __shared__ float tile[32 * 33];
    for (u32 i = threadIdx.x; i < 32 * 33; i += WARP) tile[i] = x[i];
    __syncthreads();
    out[threadIdx.x] = tile[n * threadIdx.x];
}

// ---- faults

extern "C" __global__ void no_barrier(float *out, const float *x, u32 n) {
    __shared__ float tile[256];
    tile[threadIdx.x] = -1.0f;
    __syncthreads();
    tile[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = tile[n - 1 - threadIdx.x];
}

extern "C" __global__ void written_too_early(float *out, const float *x, u32 n) {
    __shared__ float tile[256];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    float v = tile[n - 1 - threadIdx.x];
    tile[threadIdx.x] = v + 1.0f;
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void two_write(float *out, const float *x, u32 n) {
    __shared__ float tile[256];
    tile[threadIdx.x / 2] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x / 2];
}

extern "C" __global__ void blocks_meet(float *out, const float *x, u32 n) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    out[at] = x[at];
    out[n + at] = out[(at + blockDim.x) % n];
}

// The barrier orders threads of one block alone.
extern "C" __global__ void read_and_replaced(float *out, const float *x, u32 n) {
    float v = out[n];
    __syncthreads();
    if (blockIdx.x == 1 && threadIdx.x == 9) out[n] = x[9] + v;
}

extern "C" __global__ void past_shared(float *out, const float *x, u32 n) {
    __shared__ float tile[256];
    tile[threadIdx.x + n - 255] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void past_global(float *out, const float *x, u32 n) {
    out[threadIdx.x] = x[4 * n + threadIdx.x];
}

extern "C" __global__ void not_aligned(float *out, const float *x, u32 n) {
    Pack<float> pack = load_pack(x + 4 * (threadIdx.x % 16) + 1);
    store_pack(out + 4 * threadIdx.x, pack);
}

extern "C" __global__ void unwritten(float *out, const float *x, u32 n) {
    __shared__ float tile[256];
    if (threadIdx.x > 3) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = tile[n - 1 - threadIdx.x];
}

extern "C" __global__ void some_return(float *out, const float *x, u32 n) {
    if (threadIdx.x >= n / 2 + 5) return;
    __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void two_barriers(float *out, const float *x, u32 n) {
    if (threadIdx.x >= n / 2) {
        out[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        out[threadIdx.x] += 1.0f;
    } else {
        __syncthreads();
    }
}

extern "C" __global__ void absent_lane(float *out, const float *x, u32 n) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < n / 16) out[threadIdx.x] = __shfl_sync(FULL, v, 3u);
}
