// What a rank does besides where the latents of a model are shared out over several devices: each has a run of them, and all
// have the same rows. Between these kernels the ranks add up or exchange what they made (src/backend/cuda/ranks.rs).
//
// 1. keep_top: of the k candidates per row of each rank, the k largest of all, in order of latent: those of topk_stream on one
//    device. A tie goes to the lowest latent. The rank's own are a run of the row's entries.
// 2. softmax_of_ranks: the softmax of each row from that of each rank's latents.
// 3. own_parts: what the rank's own entries add to each segment's reconstruction. own_facts: what they add to the sum of the
//    code, to the active latents, and whether a score was not finite.
// 4. reconstruct, once these are sums over all ranks: y', the loss, dy' and G as in decode.cu, in the same bits on every rank.
// 5. own_dots: dh of the rank's own entries.
//
// Rank r has latents start_of(r) .. start_of(r + 1) of `units` times 128, of which the last may be fewer; lists have latents of
// the rank, from 0, but for those called `all`. planes (P, N, pitch) are the segments' sums, and G_s afterwards.
// keep_top and own_facts have a warp per row, own_parts, reconstruct and own_dots a block, the others a thread. Every sum has a
// fixed order. Moves 4 P N pitch bytes two to
// four times, and a row of W_dec twice per entry. Formulas: src/backend/mod.rs.
#include "entries.cuh"

// The first latent of rank r of `ranks`; mirrored by `Shard::start` in src/backend/cuda/ranks.rs.
__device__ inline u32 start_of(u32 r, u32 ranks, u32 units) { return (u32)((u64)r * units / ranks) * GROUP; }

// A score of a candidate as a number that rises with what it is ranked by: candidates are positive, or ranked by magnitude.
__device__ inline u32 rank_bits(float z) { return __float_as_uint(z) & 0x7fffffffu; }

// The candidates of all ranks: those of row n of rank r are at (r n_rows + n) k of index and value.
struct Gathered {
    const u32 *index;
    const float *value;
    const u32 *count;
    u32 n_rows;
    u32 k;
    u32 ranks;
};

// How many candidates of row n have `least` or more; all lanes of a warp call it.
__device__ inline u32 reach(Gathered all, u64 n, u32 least) {
    u32 reached = 0;
    for (u32 r = 0; r < all.ranks; r++) {
        u64 row = (u64)r * all.n_rows + n;
        for (u32 e = threadIdx.x % WARP; e < all.count[row]; e += WARP) {
            reached += rank_bits(all.value[row * all.k + e]) >= least;
        }
    }
    return warp_sum(reached);
}

// Step 1. With `aux` a row has k places, else as many as the step allows. A null `kth` or `fired` is left out.
extern "C" __global__ void __launch_bounds__(256)
    keep_top(const u32 *index, const float *value, const u32 *count, u32 n_rows, u32 k, u32 ranks, u32 rank, u32 units,
             u32 aux, const Step *step, u32 *all_index, float *all_value, u32 *all_first, u32 *all_count, u32 *own_index,
             u32 *own_first, u32 *own_count, u64 *kth, u32 *fired) {
    u64 n = row_of_warp();
    if (n >= n_rows) return;
    Gathered all = {index, value, count, n_rows, k, ranks};
    u32 lane = threadIdx.x % WARP, before = (1u << lane) - 1, want = aux ? k : min(k, step->active);
    u32 total = 0;
    for (u32 r = 0; r < ranks; r++) total += count[(u64)r * n_rows + n];
    // The largest number that `want` candidates reach; 0 where there are fewer. No score is above infinity.
    u32 least = 0, beyond = 0x7f800001u;
    while (total >= want && beyond - least > 1) {
        u32 middle = least + (beyond - least) / 2;
        if (reach(all, n, middle) >= want) {
            least = middle;
        } else {
            beyond = middle;
        }
    }
    u32 ties = total > want ? want - reach(all, n, least + 1) : total;
    u32 begin = (u32)n * k, at = begin, last = 0;
    for (u32 r = 0; r < ranks; r++) {
        u64 row = (u64)r * n_rows + n;
        u32 held = count[row], start = start_of(r, ranks, units);
        if (r == rank && lane == 0) own_first[n] = at;
        u32 own_begin = at;
        for (u32 from = 0; from < held; from += WARP) {
            bool inside = from + lane < held;
            u32 j = inside ? index[row * k + from + lane] : 0;
            float z = inside ? value[row * k + from + lane] : 0.0f;
            u32 key = rank_bits(z);
            bool same = inside && key == least;
            u32 twins = __ballot_sync(FULL, same);
            bool takes = inside && (key > least || (same && (u32)__popc(twins & before) < ties));
            u32 takers = __ballot_sync(FULL, takes), place = at + __popc(takers & before);
            if (takes) {
                all_index[place] = start + j;
                all_value[place] = z;
                if (same) last = start + j;
                if (r == rank) {
                    own_index[place] = j;
                    if (fired != 0) fired[j] = 1;
                }
            }
            ties -= min(ties, (u32)__popc(twins));
            at += __popc(takers);
        }
        if (r == rank && lane == 0) own_count[n] = at - own_begin;
    }
    for (u32 apart = WARP / 2; apart > 0; apart /= 2) {
        u32 other = __shfl_xor_sync(FULL, last, apart);
        last = other > last ? other : last;
    }
    if (lane != 0) return;
    all_first[n] = begin;
    all_count[n] = at - begin;
    // With fewer than k positive scores each of them is among the k largest.
    if (kth != 0) kth[n] = total < want ? 0 : (u64)least << 32 | (u32)~last;
}

// Step 2: rows (ranks, N) of softmaxes over each rank's latents.
extern "C" __global__ void __launch_bounds__(256)
    softmax_of_ranks(const SoftRow *rows, u32 n_rows, u32 ranks, const Step *step, SoftRow *out) {
    u32 n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= n_rows) return;
    float max = -F32_INF, total = 0.0f, sum = 0.0f;
    for (u32 r = 0; r < ranks; r++) max = fmaxf(max, rows[(u64)r * n_rows + n].max);
    for (u32 r = 0; r < ranks; r++) {
        SoftRow row = rows[(u64)r * n_rows + n];
        total += exp2f((row.max - max) * per_temperature(step->inv_tau)) / row.inv_total;
        sum += row.sum;
    }
    out[n] = {max, 1.0f / total, sum, 0.0f};
}

// Step 3: planes[s] of row n = sum of value_e W_dec[index_e] over its entries of segment s.
template <typename T>
__device__ void own_parts(const T *w_dec, u32 pitch, const u32 *index, const float *value, const u32 *first, const u32 *count,
                          const u32 *ends, u32 parts, float *planes) {
    const u32 P = Pack<T>::N;
    __shared__ u32 cuts[MOST_PREFIXES + 1];
    u64 n = blockIdx.x, plane = (u64)gridDim.x * pitch;
    u32 begin = first[n];
    find_cuts(index + begin, count[n], ends, parts, cuts);
    // All cuts must be there before any thread sums over a segment.
    __syncthreads();
    for (u32 i = threadIdx.x * P; i < pitch; i += blockDim.x * P) {
        for (u32 s = 0; s < parts; s++) {
            float acc[P];
            for (u32 l = 0; l < P; l++) acc[l] = 0.0f;
            u32 from = begin + cuts[s];
            gather_columns(w_dec, pitch, i, index + from, value + from, cuts[s + 1] - cuts[s], acc);
            for (u32 l = 0; l < P; l += 4) {
                Pack<float> four;
                for (u32 r = 0; r < 4; r++) four.v[r] = acc[l + r];
                store_pack(planes + s * plane + n * pitch + i + l, four);
            }
        }
    }
}

// Step 3. facts (3, N): the sum of |code|, the active latents, whether a score was not finite. Of a dense code, whose `first` is
// null, `loss` has the first, or is null, and `count` the second. In an evaluation `fired_rows` counts the rows of each entry's latent.
extern "C" __global__ void __launch_bounds__(256)
    own_facts(const u32 *index, const float *value, const u32 *first, const u32 *count, const u32 *bad, const RowLoss *loss,
              u32 n_rows, u32 *fired_rows, double *facts) {
    u64 n = row_of_warp();
    if (n >= n_rows) return;
    u32 held = count[n];
    double code = 0.0;
    for (u32 e = threadIdx.x % WARP; first != 0 && e < held; e += WARP) {
        code += (double)fabsf(value[first[n] + e]);
        // Counts of whole rows: the order of these atomics does not matter.
        if (fired_rows != 0) atomicAdd(&fired_rows[index[first[n] + e]], 1u);
    }
    code = warp_sum(code);
    if (threadIdx.x % WARP != 0) return;
    facts[n] = first != 0 ? code : (loss != 0 ? loss[n].code : 0.0);
    facts[n_rows + n] = held;
    facts[2 * (u64)n_rows + n] = bad[n];
}

// The active latents of each row, and whether a score was not finite, of all ranks.
extern "C" __global__ void __launch_bounds__(256)
    facts_of_ranks(const double *facts, u32 n_rows, u32 *active, u32 *bad) {
    u64 n = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= n_rows) return;
    active[n] = (u32)facts[n_rows + n];
    bad[n] = facts[2 * (u64)n_rows + n] > 0.0;
}

// Step 4. soft (N) and soft_recon (N, pitch) are those of a softmax, or null; aux (N, pitch) is the auxiliary code's
// reconstruction, or null, and becomes its gradient. recon (N, pitch) gets the reconstruction in the data's units, or is null.
template <typename T>
__device__ void reconstruct(const void *data, u32 kind, const u32 *rows, u32 d, const double *mean, const float *std,
                            const float *b_pre, u32 pitch, u32 parts, const float *soft_recon, SoftRow *soft,
                            const Step *step, const Control *control, const double *facts, float *planes, float *aux,
                            T *grad_recon, T *aux_recon, float *recon, RowLoss *loss) {
    __shared__ double scratch[32];
    u64 n = blockIdx.x, plane = (u64)gridDim.x * pitch, x = (u64)rows[n] * d;
    double mu = mean[n];
    float sigma = std[n];
    float factor = (float)(sigma * per_value(step, d) / parts), aux_factor = (float)(step->aux_coef * sigma * per_value(step, d));
    float soft_scale = soft != 0 ? step->rest * soft[n].sum : 0.0f, share = soft != 0 ? step->alpha : 1.0f;
    bool any_dead = aux != 0 && control->n_dead > 0;
    double squared = 0.0, along = 0.0, aux_squared = 0.0;
    for (u32 c = threadIdx.x; c < pitch; c += blockDim.x) {
        u64 at = n * pitch + c;
        float soft_y = soft != 0 ? soft_recon[at] : 0.0f;
        float x_centered = c < d ? (float)((double)stored(data, kind, x + c) - mu) : 0.0f;
        float sum = 0.0f, off = 0.0f, y = 0.0f, later = 0.0f;
        for (u32 s = 0; s < parts; s++) {
            sum += planes[s * plane + at];
            y = share * sum + b_pre[c];
            y += soft_scale * soft_y;
            off = c < d ? y * sigma - x_centered : 0.0f;
            squared += (double)off * off;
            planes[s * plane + at] = off * factor;
            along += (double)(off * factor) * soft_y;
        }
        for (u32 s = parts; s-- > 0;) {
            later += planes[s * plane + at];
            planes[s * plane + at] = later;
            narrow(later, &grad_recon[s * plane + at]);
        }
        if (recon != 0) recon[at] = c < d ? (float)((double)(y * sigma) + mu) : 0.0f;
        if (!any_dead) continue;
        float left = c < d ? aux[at] * sigma + off : 0.0f;
        aux_squared += (double)left * left;
        aux[at] = left * aux_factor;
        narrow(left * aux_factor, &aux_recon[at]);
    }
    squared = block_sum(squared, scratch);
    along = block_sum(along, scratch);
    aux_squared = block_sum(aux_squared, scratch);
    if (threadIdx.x != 0) return;
    loss[n].squared = squared / parts;
    loss[n].code = (double)share * facts[n] + (double)soft_scale;
    loss[n].aux = aux_squared;
    if (soft != 0) soft[n].c = step->rest * ((float)along + step->sparsity);
}

// Step 5: grad_e = planes[segment of e] . W_dec[index_e] + add sign(value_e), where `penalised`; a warp takes an entry at a time.
template <typename T>
__device__ void own_dots(const T *w_dec, u32 pitch, const u32 *index, const float *value, const u32 *first, const u32 *count,
                         const u32 *ends, u32 parts, const float *planes, u32 penalised, const Step *step, float *grad) {
    const u32 P = Pack<T>::N;
    u64 n = blockIdx.x, plane = (u64)gridDim.x * pitch;
    u32 lane = threadIdx.x % WARP, begin = first[n], held = count[n];
    float add = penalised ? step->sparsity : 0.0f;
    for (u32 e = begin + threadIdx.x / WARP; e < begin + held; e += blockDim.x / WARP) {
        const float *dy = planes + n * pitch;
        for (u32 s = 0; s + 1 < parts; s++) dy += index[e] >= ends[s] ? plane : 0;
        const T *row = row_of(w_dec, index[e], pitch);
        float dot = 0.0f;
#pragma unroll 2
        for (u32 i = lane * P; i < pitch; i += WARP * P) {
            float wide[P];
            load_wide<P>(row + i, wide);
            for (u32 l = 0; l < P; l += 4) {
                Pack<float> g = load_pack(dy + i + l);
                for (u32 r = 0; r < 4; r++) dot += wide[l + r] * g.v[r];
            }
        }
        dot = warp_sum(dot);
        if (lane == 0) grad[e] = dot + (value[e] < 0.0f ? -add : add);
    }
}

#define RANKS(T, t)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        own_parts_##t(const T *w_dec, u32 pitch, const u32 *index, const float *value, const u32 *first,               \
                      const u32 *count, const u32 *ends, u32 parts, float *planes) {                                   \
        own_parts<T>(w_dec, pitch, index, value, first, count, ends, parts, planes);                                   \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        reconstruct_##t(const void *data, u32 kind, const u32 *rows, u32 d, const double *mean, const float *std,      \
                        const float *b_pre, u32 pitch, u32 parts, const float *soft_recon, SoftRow *soft,              \
                        const Step *step, const Control *control, const double *facts, float *planes, float *aux,      \
                        T *grad_recon, T *aux_recon, float *recon, RowLoss *loss) {                                    \
        reconstruct<T>(data, kind, rows, d, mean, std, b_pre, pitch, parts, soft_recon, soft, step, control, facts,    \
                       planes, aux, grad_recon, aux_recon, recon, loss);                                               \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        own_dots_##t(const T *w_dec, u32 pitch, const u32 *index, const float *value, const u32 *first,                \
                     const u32 *count, const u32 *ends, u32 parts, const float *planes, u32 penalised,                 \
                     const Step *step, float *grad) {                                                                  \
        own_dots<T>(w_dec, pitch, index, value, first, count, ends, parts, planes, penalised, step, grad);             \
    }
RANKS(float, f32)
RANKS(bf16, bf16)
