// What kernels share that go over the entries of a row: its rows of W_dec, its segments, the scale of its gradients.
#pragma once
#include "common.cuh"

// Row `row` of W.
template <typename T> __device__ inline const T *row_of(const T *w, u32 row, u32 pitch) { return w + (u64)row * pitch; }

// acc += sum over `count` entries in shared memory of value times its row of W, at columns i .. i + N.
template <typename T>
__device__ inline void gather_columns(const T *w, u32 pitch, u32 i, const u32 *index, const float *value, u32 count,
                                      float *acc) {
    const u32 P = Pack<T>::N;
#pragma unroll 4
    for (u32 e = 0; e < count; e++) {
        float wide[P], scale = value[e];
        load_wide<P>(row_of(w, index[e], pitch) + i, wide);
        for (u32 l = 0; l < P; l++) acc[l] += scale * wide[l];
    }
}

// Where the entries of each segment start: those of segment s are cuts[s] .. cuts[s + 1] of the row; a barrier must follow.
__device__ inline void find_cuts(const u32 *index, u32 held, const u32 *ends, u32 parts, u32 *cuts) {
    u32 s = threadIdx.x;
    if (s > parts) return;
    u32 low = 0, high = s == 0 ? 0 : held;
    // The first entry at or beyond the end of the prefix before; all entries are below that of the last.
    if (s > 0 && s < parts) {
        while (low < high) {
            u32 middle = (low + high) / 2;
            if (index[middle] < ends[s - 1]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
    }
    cuts[s] = high;
}

// The gradient of the scaled mean square is this times a value's error: 2 loss_scale / (N D).
__device__ inline double per_value(const Step *step, u32 d) { return 2.0 / ((double)step->n_rows * d) * step->loss_scale; }
