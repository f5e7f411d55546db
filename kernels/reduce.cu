// Sums over rows, blocks and latents, each by one block or in chunks of fixed size: the order is always the same.
//
// 1. finish_loss: the loss of a step from its rows, and what the penalty's gradient needs; a loss that is not finite stops all.
// 2. column_sums, then add_chunks: gradients that are sums over rows, by runs of rows and then over the runs: that of b_pre, and those
//    of biases and thresholds where they are dense.
// 3. clip_factor: the gradient's norm, where it is clipped, from sums of squares that latent_update left by block.
// 4. update_pre_bias, carry_weight, count_idle: what is left of the update, a thread a value.
// 5. add_quality: an evaluation's sums over the rows of a batch.
#include "common.cuh"

// Column sums of a matrix (n, pitch) over chunk blockIdx.y of gridDim.y runs of rows: out (gridDim.y, cols), float64.
// 32 columns a block, 8 threads a column, each taking every 8th row of the run.
template <typename T>
__device__ void column_sums(const T *matrix, u32 n, u32 cols, u32 pitch, double *out) {
    __shared__ double sums[8][33];
    u32 x = threadIdx.x % WARP, y = threadIdx.x / WARP;
    u32 i = blockIdx.x * WARP + x;
    u32 run = (n + gridDim.y - 1) / gridDim.y;
    u32 begin = blockIdx.y * run, end = min(n, begin + run);
    double sum = 0.0;
    if (i < cols) {
        for (u32 row = begin + y; row < end; row += 8) sum += (double)widen(matrix[(u64)row * pitch + i]);
    }
    sums[y][x] = sum;
    // The sums of all eight threads must be there before one adds them.
    __syncthreads();
    if (y == 0 && i < cols) {
        for (u32 other = 1; other < 8; other++) sum += sums[other][x];
        out[(u64)blockIdx.y * cols + i] = sum;
    }
}
extern "C" __global__ void __launch_bounds__(256)
    column_sums_f32(const float *matrix, u32 n, u32 cols, u32 pitch, double *out) {
    column_sums<float>(matrix, n, cols, pitch, out);
}
extern "C" __global__ void __launch_bounds__(256)
    column_sums_bf16(const bf16 *matrix, u32 n, u32 cols, u32 pitch, double *out) {
    column_sums<bf16>(matrix, n, cols, pitch, out);
}

// out_i = sum of `chunks` runs of column sums, less `fewer` runs of others; 0 everywhere where `keep` is 0.
extern "C" __global__ void __launch_bounds__(256)
    add_chunks(const double *sums, u32 chunks, const double *less, u32 fewer, u32 cols, u32 keep, float *out) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= cols) return;
    double sum = 0.0;
    for (u32 c = 0; c < chunks; c++) sum += sums[(u64)c * cols + i];
    for (u32 c = 0; c < fewer; c++) sum -= less[(u64)c * cols + i];
    out[i] = keep ? (float)sum : 0.0f;
}

// How far a batch is from the number of active latents that is sought: ln(l0 / k), held between -most and most.
__device__ inline float distance(double l0, u32 k, float most) {
    return fminf(fmaxf(logf((float)(l0 / k)), -most), most);
}

// How fast the logarithm of a carried weight follows the distance (src/schedule.rs).
#define SEEKING_RATE 0.01f

// What the penalty says of a batch with `active` active latents, whose squared distances from k in each row add up to
// `spread`: its value before its weight, and what later kernels need of it. Formulas: src/backend/mod.rs.
__device__ inline double penalty_of(const Step *step, double code, double active, double spread, u32 m, double weight,
                                    Control *control) {
    double n = step->n_rows, k = step->k, l0 = active / n, off = l0 / k - 1.0;
    control->per_entry = step->penalty == PENALTY_L1 ? (float)(weight / n) : 0.0f;
    control->slope = control->slope_rows = 0.0;
    control->common = step->furthest > 0.0f ? step->furthest * distance(l0, step->k, 1.0f) : 0.0f;
    switch (step->penalty) {
    case PENALTY_L1: return code / n;
    case PENALTY_L0_TARGET: control->slope = weight * 2.0 * off / (k * n); return off * off;
    case PENALTY_L0: control->slope = weight / n; return l0;
    case PENALTY_L0_ROWS: control->slope_rows = weight * 4.0 / (k * n); return 2.0 / k * spread / n;
    default: return code / (n * m);
    }
}

// The loss of a step from its rows, one block: mse + penalty + auxiliary. A loss that is not finite stops the run: from
// then on no kernel changes a weight, and every later step reports NaN. active (N): active latents of each row. A weight that
// seeks k is the step's times `carried`, or null.
extern "C" __global__ void __launch_bounds__(1024)
    finish_loss(const RowLoss *rows, const u32 *bad, const u32 *active, const float *carried, u32 d, u32 m, const Step *step,
                Control *control, Outcome *outcomes) {
    __shared__ double scratch[32];
    double squared = 0.0, code = 0.0, aux = 0.0, worst = 0.0, held = 0.0, spread = 0.0;
    u32 n_rows = step->n_rows;
    for (u32 n = threadIdx.x; n < n_rows; n += blockDim.x) {
        squared += rows[n].squared;
        code += rows[n].code;
        aux += rows[n].aux;
        worst += bad[n];
        double off = (double)active[n] - step->k;
        held += active[n];
        spread += off * off;
    }
    squared = block_sum(squared, scratch);
    code = block_sum(code, scratch);
    aux = block_sum(aux, scratch);
    worst = block_sum(worst, scratch);
    held = block_sum(held, scratch);
    spread = block_sum(spread, scratch);
    if (threadIdx.x != 0) return;
    double values = (double)n_rows * d, seeks = 1.0;
    if (carried != 0) {
        float off = distance(held / n_rows, step->k, 0.5f);
        seeks = (double)*carried * expf(off);
        control->carried = *carried * expf(SEEKING_RATE * off);
    }
    double l1 = penalty_of(step, code, held, spread, m, step->weight * seeks, control);
    double mse = squared / values, part = aux / values;
    double loss = mse + step->l1 * seeks * l1 + step->aux_coef * part;
    if (worst > 0.0 || control->stopped) loss = F64_NAN;
    if (!isfinite(loss)) control->stopped = 1;
    control->clip = 1.0f;
    Outcome *out = &outcomes[step->slot];
    out->loss = loss;
    out->mse = mse;
    out->l1 = l1;
    out->aux = part;
    out->grad_norm = F64_NAN;
}

// The gradient's factor min(1, clip / (norm + 1e-6)) from the blocks' sums of squares and the gradient of b_pre.
extern "C" __global__ void __launch_bounds__(1024)
    clip_factor(const double *squares, u32 count, const float *pre, u32 d, const Step *step, Control *control,
                Outcome *outcomes) {
    __shared__ double scratch[32];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += squares[i];
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) sum += (double)pre[i] * pre[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x != 0 || control->stopped) return;
    double norm = sqrt(sum), factor = step->clip_norm / (norm + 1e-6);
    outcomes[step->slot].grad_norm = norm;
    control->clip = step->clip_norm > 0.0 && factor < 1.0 ? (float)factor : 1.0f;
}

// The weight that seeks k, after a step.
extern "C" __global__ void __launch_bounds__(32) carry_weight(float *carried, const Control *control) {
    if (threadIdx.x == 0 && !control->stopped) *carried = control->carried;
}

// Adam on b_pre from its gradient; one thread a column.
extern "C" __global__ void __launch_bounds__(256)
    update_pre_bias(const Model *model, const float *grad, u32 d, const Step *step, const Control *control) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= d || control->stopped) return;
    Tensor b = model->pre;
    float w = adam(step, control->clip, 1.0f, b.w[i], &b.m[i], &b.v[i], grad[i]);
    b.w[i] = w;
    if (b.e != 0) b.e[i] = averaged(step->ema_keep, b.e[i], w);
}

// Rows since each latent last fired, after a step; counts the latents that are dead for the next one. `fired` is
// emptied. `n_dead` must be 0 before; with n_rows = 0 nothing but the count is made.
extern "C" __global__ void __launch_bounds__(256)
    count_idle(u32 *idle, u32 *fired, u32 m, u32 n_rows, u32 dead_after, Control *control) {
    u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    bool dead = false;
    if (j < m) {
        u32 rows = idle[j];
        if (!control->stopped && n_rows > 0) {
            rows = fired[j] ? 0 : (rows > ~0u - n_rows ? ~0u : rows + n_rows);
            idle[j] = rows;
        }
        fired[j] = 0;
        dead = rows >= dead_after;
    }
    u32 takers = __ballot_sync(FULL, dead);
    // A sum of counts: the order of these atomics does not matter.
    if (threadIdx.x % WARP == 0 && takers != 0) atomicAdd(&control->n_dead, __popc(takers));
}

// Adds the quality of `n_rows` rows to running sums, one block.
struct Quality {
    double squared;
    double absolute;
    double cosine;
    u64 active;
    double by_prefix[MOST_PREFIXES];
};
extern "C" __global__ void __launch_bounds__(1024)
    add_quality(const RowQuality *rows, const double *by_prefix, u32 prefixes, u32 n_rows, Quality *sums) {
    __shared__ double scratch[32];
    __shared__ u64 counts[32];
    double squared = 0.0, absolute = 0.0, cosine = 0.0;
    u64 active = 0;
    for (u32 n = threadIdx.x; n < n_rows; n += blockDim.x) {
        squared += rows[n].squared;
        absolute += rows[n].absolute;
        cosine += rows[n].cosine;
        active += rows[n].active;
    }
    squared = block_sum(squared, scratch);
    absolute = block_sum(absolute, scratch);
    cosine = block_sum(cosine, scratch);
    active = block_sum(active, counts);
    for (u32 s = 0; s < prefixes; s++) {
        double part = 0.0;
        for (u32 n = threadIdx.x; n < n_rows; n += blockDim.x) part += by_prefix[(u64)n * prefixes + s];
        part = block_sum(part, scratch);
        if (threadIdx.x == 0) sums->by_prefix[s] += part;
    }
    if (threadIdx.x != 0) return;
    sums->squared += squared;
    sums->absolute += absolute;
    sums->cosine += cosine;
    sums->active += active;
}
