// Small kernels that test the emulation itself; no part of the engine.
#include "common.cuh"

// out[b] = sum of the values of block b.
extern "C" __global__ void __launch_bounds__(1024) total(const float *x, float *out, u32 n) {
    __shared__ float scratch[WARP];
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    float sum = block_sum(at < n ? x[at] : 0.0f, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// Each block turns its values around, over dynamic shared memory.
template <typename T> __device__ void turn_around(const T *x, T *out) {
    DYNAMIC_SHARED(bytes);
    T *tile = (T *)bytes;
    u64 start = (u64)(blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x;
    tile[threadIdx.x] = x[start + threadIdx.x];
    __syncthreads(); // every value must be there before another thread takes it
    out[start + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
#define INSTANCE(T, suffix)                                                                                            \
    extern "C" __global__ void turn_around_##suffix(const T *x, T *out) { turn_around<T>(x, out); }
INSTANCE(float, f32)
INSTANCE(bf16, bf16)

// Warp primitives, one column of `out` (threads, 12) each.
extern "C" __global__ void primitives(const u32 *x, u32 *out) {
    u32 t = threadIdx.x, lane = t % WARP, v = x[t], *row = out + 12 * t;
    row[0] = __shfl_sync(FULL, v, 5);
    row[1] = __shfl_xor_sync(FULL, v, 3);
    row[2] = __shfl_up_sync(FULL, v, 2);
    row[3] = __shfl_down_sync(FULL, v, 2);
    row[4] = __shfl_down_sync(FULL, v, 3, 8);
    row[5] = __ballot_sync(FULL, v & 1);
    row[6] = (u32)__any_sync(FULL, v == 7) << 1 | (u32)__all_sync(FULL, v < 1000);
    row[7] = __match_any_sync(FULL, v % 4);
    // The halves of a warp call the same primitive at different places.
    if (lane < 16) row[8] = __reduce_add_sync(0x0000ffffu, v);
    else row[8] = __reduce_max_sync(0xffff0000u, v);
    __syncwarp();
    row[9] = (u32)__syncthreads_count(v & 1);
    row[10] = (u32)__syncthreads_or(v == 7) << 1 | (u32)__syncthreads_and(v < 1000);
    row[11] = (u32)(__shfl_xor_sync(FULL, (u64)v << 32, 1) >> 32);
}

// Counts, and the largest, of x; `out` is (bins + 1).
extern "C" __global__ void histogram(const u32 *x, u32 *out, u32 n, u32 bins) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n) return;
    atomicAdd(&out[x[at] % bins], 1u);
    atomicMax(&out[bins], x[at]);
}

extern "C" __global__ void widen_all(const f16 *x, float *out) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    out[at] = widen(x[at]);
}

// Reads shared memory that nothing has written.
extern "C" __global__ void unwritten(float *out) {
    __shared__ float fixed[64];
    DYNAMIC_SHARED(bytes);
    out[threadIdx.x] = fixed[threadIdx.x];
    out[blockDim.x + threadIdx.x] = ((float *)bytes)[threadIdx.x];
    fixed[threadIdx.x] = ((float *)bytes)[threadIdx.x] = 1.0f;
}

// ---- faults

extern "C" __global__ void writes_past_global(float *out, u32 n) { out[n + threadIdx.x] = 1.0f; }

extern "C" __global__ void writes_past_dynamic(float *out, u32 n) {
    DYNAMIC_SHARED(bytes);
    ((float *)bytes)[n + threadIdx.x] = 1.0f;
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void writes_past_fixed(float *out, u32 n) {
    __shared__ float fixed[WARP];
    float *p = fixed;
    p[n + threadIdx.x] = 1.0f;
    out[threadIdx.x] = p[threadIdx.x];
}

extern "C" __global__ void some_return(float *out, u32 n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
    out[threadIdx.x] = 1.0f;
}

extern "C" __global__ void two_barriers(float *out, u32 n) {
    if (threadIdx.x >= n) __syncthreads();
    else {
        out[threadIdx.x] = 1.0f;
        __syncthreads();
    }
}

extern "C" __global__ void absent_lane(float *out, u32 n) {
    out[threadIdx.x] = threadIdx.x < n ? __shfl_sync(FULL, 1.0f, 0) : 0.0f;
}

extern "C" __global__ void lane_at_barrier(float *out, u32 n) {
    if (threadIdx.x < n) out[threadIdx.x] = __shfl_sync(FULL, 1.0f, 0);
    __syncthreads();
}

extern "C" __global__ void outside_its_mask(float *out, u32 n) { out[threadIdx.x] = __shfl_sync(n, 1.0f, 0); }

extern "C" __global__ void traps(u32 at) {
    if (threadIdx.x == at) __trap();
    __syncthreads();
}

// ---- time

extern "C" __global__ void many_turns(float *out, u32 barriers, u32 sums) {
    __shared__ float tile[1024];
    float v = 1.0f;
    for (u32 i = 0; i < barriers; i++) {
        tile[threadIdx.x] = v;
        __syncthreads();
        v = tile[blockDim.x - 1 - threadIdx.x];
        __syncthreads();
    }
    for (u32 i = 0; i < sums; i++) v = warp_sum(v) / 32.0f;
    out[threadIdx.x] = v;
}

extern "C" __global__ void __launch_bounds__(256) no_turns(float *out, u32 n) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n) out[at] = 2.0f * out[at] + 1.0f;
}
