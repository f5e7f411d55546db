// A row's reconstructions, its loss, and the gradients of its sparse entries, in one visit.
//
//   y'_p = share sum_{e < m_p} value_e W_dec[index_e] + (1 - alpha) S soft_recon + b_pre           e < m_p: of prefix p
//   share is alpha beside a dense softmax, else 1; without prefixes there is one reconstruction, P = 1
//   miss_p = y'_p std - (x - mu),  squared = sum_p sum_i miss_p,i^2 / P,  dy'_p = 2 miss_p std / (N D P)
//   G_s  = sum_{p >= s} dy'_p                                        what entries of segment s meet, and db_pre G_1
//   dh_e = G_s . W_dec[index_e] + sparsity sign(value_e)            (beside a dense code dh is a dense product)
//   c    = (1 - alpha) (dy' . soft_recon + sparsity)                (softmax)
//   auxiliary loss, while latents are dead: with entries a of its own,
//   miss_a = sum_a value_a W_dec[index_a] std + miss_P,  dya' = aux_coef 2 miss_a std / (N D),  dza_a = dya' . W_dec[..]
//
// w_dec (M, pitch); row n's entries are at first[n] .. first[n] + count[n] of index, value and grad, ascending. A code that
// is dense (soft_recon without softmax) has none, and its products with each segment of W_dec lie in soft_recon
// (P, N, pitch); a softmax has no prefixes. ends (P) are the prefixes, or null; grad_recon (P, N, pitch) gets G_s.
// One block a row. Dynamic shared memory: a pack of floats a thread, P pitch floats, pitch more with aux,
// 8 max(k, aux_k) bytes.
//
// 1. The entries are brought to shared memory, all of them where there are at most k, else in runs of k.
// Where there are at most k and no prefixes:
// 2. 256 threads: slab by slab of 32 packs of columns, each warp loads its rows of W_dec, those of every eighth entry, and sums
//    over them; a thread then adds what the warps have for one column: y', the loss, dy'.
// 3. With dy' of the slab each warp goes on with the dot products of the rows it holds: W_dec is read once for 64 entries.
// 4. The dot products of entries beyond 64 with the whole of dy', a warp an entry.
// Else, rows of W_dec are gathered twice for each entry, the second time from cache:
// 2. Each thread sums its packs of columns over the entries of a segment, in their order; then the loss of the prefix and dy'_p,
//    left in shared memory: one row of it is the sum so far until it becomes dy'_p.
// 3. From dy'_p to G_s, the last first.
// 4. A warp four entries: their dot products with G_s.
// 5. The auxiliary loss by slabs, as above; the block then has 256 threads, else as many as packs.
// Every sum has a fixed order. Formula: src/backend/mod.rs.
#include "entries.cuh"

#define TOGETHER 4u

// Where columns i + l .. i + l + 4 of a row lie in shared memory, for packs of P columns: the halves of a pack of eight
// lie half a row apart, so that threads that follow one another are never in one bank.
template <u32 P, typename F> __device__ inline F *quarter(F *row, u32 pitch, u32 i, u32 l) {
    return row + l / 4 * (pitch * 4 / P) + i * 4 / P;
}

// The columns of a thread's pack of a row in shared memory, four at a time.
template <u32 P> __device__ inline void load_columns(float *row, u32 pitch, u32 i, float *out) {
    for (u32 l = 0; l < P; l += 4) {
        Pack<float> four = load_pack(quarter<P>(row, pitch, i, l));
        for (u32 r = 0; r < 4; r++) out[l + r] = four.v[r];
    }
}
template <u32 P> __device__ inline void store_columns(float *row, u32 pitch, u32 i, const float *values) {
    for (u32 l = 0; l < P; l += 4) {
        Pack<float> four;
        for (u32 r = 0; r < 4; r++) four.v[r] = values[l + r];
        store_pack(quarter<P>(row, pitch, i, l), four);
    }
}

// out_e = dy . W[index_e] + add sign(value_e) for all entries; dy is in shared memory. A warp takes `TOGETHER` entries at a time: what
// it reads of dy serves them all, and as many rows of W are on their way at once.
template <typename T>
__device__ inline void entry_dots(const T *w, u32 pitch, const u32 *index, const float *value, u32 count,
                                  const float *dy, float add, float *out) {
    const u32 P = Pack<T>::N;
    u32 lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (u32 first = threadIdx.x / WARP * TOGETHER; first < count; first += warps * TOGETHER) {
        const T *row[TOGETHER];
        float dot[TOGETHER];
        for (u32 q = 0; q < TOGETHER; q++) {
            // Beyond the last entry its row is read again, and what comes of it is dropped.
            row[q] = row_of(w, index[min(first + q, count - 1)], pitch);
            dot[q] = 0.0f;
        }
// Not unrolled: the rows in flight are enough, and more of them take registers that spill.
#pragma unroll 1
        for (u32 i = lane * P; i < pitch; i += WARP * P) {
            Pack<T> values[TOGETHER];
            for (u32 q = 0; q < TOGETHER; q++) values[q] = load_pack(row[q] + i);
            for (u32 l = 0; l < P; l += 4) {
                Pack<float> g = load_pack(quarter<P>(dy, pitch, i, l));
                for (u32 r = 0; r < 4; r++) {
                    for (u32 q = 0; q < TOGETHER; q++) dot[q] += widen(values[q].v[l + r]) * g.v[r];
                }
            }
        }
        for (u32 q = 0; q < TOGETHER; q++) {
            dot[q] = warp_sum(dot[q]);
            if (lane == 0 && first + q < count) out[first + q] = dot[q] + (value[first + q] < 0.0f ? -add : add);
        }
    }
}

// Rows of W_dec that a warp keeps in registers, of a row's first entries.
#define HELD 8u
#define DECODE_THREADS 256u

// Hides from the compiler that it has seen the words before: else it keeps them widened in twice as many registers, which
// spill.
__device__ inline void forget(Raw *words) {
    for (u32 w = 0; w < 4; w++) asm volatile("" : "+r"(words->v[w]));
}

// A slab is what the lanes of a warp take of a row with a pack each. Thread t of a block has this column of it to itself: those of
// threads that follow one another lie side by side in shared memory, in different banks.
template <u32 P> __device__ inline u32 column_of(u32 t) { return t % (4 * WARP) / 4 * P + t / (4 * WARP) * 4 + t % 4; }

// Column c of a row in shared memory.
template <u32 P> __device__ inline float *column(float *row, u32 pitch, u32 c) {
    return quarter<P>(row, pitch, c / P * P, c % P) + c % 4;
}

// Calls dy_c = form(c, sum_e value_e W[index_e]_c) for all columns c < pitch, and then, with `dots`,
// out_e = dy . W[index_e] + add sign(value_e), for `count` entries in shared memory; dy (pitch) and `sums` (a slab for each
// warp) are shared memory too. A warp keeps `HELD` rows of W, a slab at a time, so that those of the first 64 entries are read
// once; the others are read again. All threads of the block call it.
template <typename T, typename F>
__device__ inline void by_slabs(const T *w, u32 pitch, const u32 *index, const float *value, u32 count, float *dy,
                                float *sums, bool dots, float add, float *out, F form) {
    const u32 P = Pack<T>::N, SLAB = WARP * P;
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = DECODE_THREADS / WARP;
    float dot[HELD] = {};
    for (u32 start = 0; start < pitch; start += SLAB) {
        // Beyond the last pack it is read again, and what comes of it is dropped.
        u32 i = min(start + lane * P, pitch - P);
        Raw row[HELD];
        for (u32 q = 0; q < HELD; q++) {
            u32 e = warp + q * warps;
            if (e >= count) break;
            row[q] = load_raw(row_of(w + i, index[e], pitch));
        }
        float acc[P];
        for (u32 l = 0; l < P; l++) acc[l] = 0.0f;
        for (u32 q = 0; q < HELD; q++) {
            u32 e = warp + q * warps;
            if (e >= count) break;
            float wide[P];
            widen(row[q], w, wide);
            for (u32 l = 0; l < P; l++) acc[l] += value[e] * wide[l];
        }
#pragma unroll 1
        for (u32 e = warp + HELD * warps; e < count; e += warps) {
            float wide[P];
            load_wide<P>(row_of(w, index[e], pitch) + i, wide);
            for (u32 l = 0; l < P; l++) acc[l] += value[e] * wide[l];
        }
        store_columns<P>(sums + warp * SLAB, SLAB, lane * P, acc);
        // The sums of all warps must be there before they are added.
        __syncthreads();
        for (u32 t = threadIdx.x; t < SLAB; t += DECODE_THREADS) {
            u32 c = start + column_of<P>(t);
            if (c >= pitch) continue;
            float sum = 0.0f;
            for (u32 other = 0; other < warps; other++) sum += sums[other * SLAB + t];
            *column<P>(dy, pitch, c) = form(c, sum);
        }
        // All of the slab of dy must be there before it is multiplied, and the sums have been read.
        __syncthreads();
        if (!dots || start + lane * P >= pitch) continue;
        float g[P];
        load_columns<P>(dy, pitch, i, g);
        for (u32 q = 0; q < HELD; q++) {
            if (warp + q * warps >= count) break;
            forget(&row[q]);
            float wide[P];
            widen(row[q], w, wide);
            for (u32 l = 0; l < P; l++) dot[q] += wide[l] * g[l];
        }
    }
    if (!dots) return;
    for (u32 q = 0; q < HELD; q++) {
        u32 e = warp + q * warps;
        if (e >= count) break;
        float sum = warp_sum(dot[q]);
        if (lane == 0) out[e] = sum + (value[e] < 0.0f ? -add : add);
    }
    u32 held = HELD * warps;
    for (u32 e = held + warp; e < count; e += warps) {
        float rest = 0.0f;
#pragma unroll 2
        for (u32 i = lane * P; i < pitch; i += SLAB) {
            float g[P], wide[P];
            load_wide<P>(row_of(w, index[e], pitch) + i, wide);
            load_columns<P>(dy, pitch, i, g);
            for (u32 l = 0; l < P; l++) rest += wide[l] * g[l];
        }
        rest = warp_sum(rest);
        if (lane == 0) out[e] = rest + (value[e] < 0.0f ? -add : add);
    }
}

// Copies entries to shared memory; a barrier must follow.
__device__ inline void stage(const u32 *index, const float *value, u32 held, u32 *to_index, float *to_value) {
    for (u32 e = threadIdx.x; e < held; e += blockDim.x) {
        to_index[e] = index[e];
        to_value[e] = value[e];
    }
}

// A row's entries: where they lie, and the shared memory that holds all of them, if there are at most `room`, or a run.
struct RowEntries {
    const u32 *index;
    const float *value;
    u32 held;
    u32 room;
    u32 *entry;
    float *scale;
};

// Brings all entries to shared memory, if there is room for them.
__device__ inline void stage_all(RowEntries row) {
    if (row.held <= row.room) stage(row.index, row.value, row.held, row.entry, row.scale);
    // All entries must be there before any thread sums over them.
    __syncthreads();
}

// f(place in shared memory, entries, place in the row) for the runs of the entries from .. to; one run, maybe empty, at least.
// All threads of the block call it.
template <typename F> __device__ inline void each_run(RowEntries row, u32 from, u32 to, F f) {
    if (row.held <= row.room) {
        f(from, to - from, from);
        return;
    }
    u32 at = from;
    do {
        u32 run = min(row.room, to - at);
        // The run before must have been used by all threads.
        __syncthreads();
        stage(row.index + at, row.value + at, run, row.entry, row.scale);
        // All entries of the run must be there before any thread sums over them.
        __syncthreads();
        f(0u, run, at);
        at += run;
    } while (at < to);
}

// PLAIN: k entries at most, and no prefixes.
template <typename T, bool PLAIN>
__device__ void decode(const void *data, u32 kind, const u32 *rows, u32 d, const double *mean, const float *std, const T *w_dec,
                       const float *b_pre, u32 pitch, const u32 *index, const float *value, const u32 *first,
                       const u32 *count, u32 k, const u32 *ends, u32 prefixes, const float *soft_recon, SoftRow *soft,
                       const u32 *aux_index, const float *aux_value, const u32 *aux_first, const u32 *aux_count, u32 aux_k,
                       const Step *step, const Control *control, T *grad_recon, float *grad, T *aux_recon, float *aux_grad,
                       float *recon, RowLoss *loss) {
    const u32 P = Pack<T>::N;
    DYNAMIC_SHARED(shared);
    __shared__ double scratch[32];
    __shared__ u32 cuts[PLAIN ? 1 : MOST_PREFIXES + 1];
    u64 n = blockIdx.x, plane = (u64)step->n_rows * pitch;
    bool dense = !PLAIN && soft_recon != 0 && soft == 0;
    u32 parts = PLAIN ? 1 : prefixes;
    u32 most = k > aux_k ? k : aux_k;
    float *sums = (float *)shared;
    float *dy = sums + DECODE_THREADS * P;
    float *miss = dy + (u64)parts * pitch;
    u32 *entry = (u32 *)(miss + (aux_k > 0 ? (u64)pitch : 0));
    float *scale = (float *)(entry + most);
    u64 x = (u64)rows[n] * d;
    double mu = mean[n];
    float sigma = std[n];
    float factor = (float)(sigma * per_value(step, d) / parts);
    float soft_scale = soft != 0 ? step->rest * soft[n].sum : 0.0f, share = soft != 0 ? step->alpha : 1.0f;

    u32 begin = dense ? 0 : first[n], held = dense ? 0 : count[n];
    RowEntries row = {index + begin, value + begin, held, k, entry, scale};
    if (!PLAIN) find_cuts(row.index, held, ends, parts, cuts);
    stage_all(row);
    double squared = 0.0, along = 0.0;
    // From the sum over entries, the bias and the softmax's part of a column to its dy'_p.
    auto form = [&](u32 c, float sum, float bias, float soft_y, bool last) {
        float y = share * sum + bias;
        y += soft_scale * soft_y;
        float x_centered = c < d ? (float)((double)stored(data, kind, x + c) - mu) : 0.0f;
        float off = c < d ? y * sigma - x_centered : 0.0f;
        float g = off * factor;
        squared += (double)off * off;
        along += (double)g * soft_y;
        if (last && aux_k > 0) *column<P>(miss, pitch, c) = off;
        if (last && recon != 0) recon[n * pitch + c] = c < d ? (float)((double)(y * sigma) + mu) : 0.0f;
        return g;
    };
    if (PLAIN) {
        by_slabs(w_dec, pitch, entry, scale, held, dy, sums, soft == 0, step->sparsity, grad + begin, [&](u32 c, float sum) {
            float g = form(c, sum, b_pre[c], soft != 0 ? soft_recon[n * pitch + c] : 0.0f, true);
            narrow(g, &grad_recon[n * pitch + c]);
            return g;
        });
    } else {
        for (u32 s = 0; s < parts; s++) {
            float *here = dy + (u64)s * pitch;
            each_run(row, cuts[s], cuts[s + 1], [&](u32 staged, u32 run, u32 at) {
                bool fresh = s == 0 && at == cuts[s], last = at + run == cuts[s + 1];
                for (u32 i = threadIdx.x * P; i < pitch; i += blockDim.x * P) {
                    float acc[P];
                    for (u32 l = 0; l < P; l++) acc[l] = 0.0f;
                    if (!fresh) load_columns<P>(here, pitch, i, acc);
                    for (u32 l = 0; l < P && dense; l += 4) {
                        Pack<float> part = load_pack(soft_recon + s * plane + n * pitch + i + l);
                        for (u32 r = 0; r < 4; r++) acc[l + r] += part.v[r];
                    }
                    gather_columns(w_dec, pitch, i, entry + staged, scale + staged, run, acc);
                    if (!last || s + 1 < parts) {
                        store_columns<P>(here + (last ? pitch : 0), pitch, i, acc);
                        if (!last) continue;
                    }
                    Pack<T> out;
                    Pack<float> bias;
                    for (u32 l = 0; l < P; l++) {
                        if (l % 4 == 0) bias = load_pack(b_pre + i + l);
                        float g = form(i + l, acc[l], bias.v[l % 4], 0.0f, s + 1 == parts);
                        quarter<P>(here, pitch, i, l)[l % 4] = g;
                        narrow(g, &out.v[l]);
                    }
                    if (s + 1 == parts) store_pack(grad_recon + s * plane + n * pitch + i, out);
                }
            });
        }
        // Step 3; a thread has its columns to itself.
        for (u32 s = parts - 1; s-- > 0;) {
            float *here = dy + (u64)s * pitch;
            for (u32 i = threadIdx.x * P; i < pitch; i += blockDim.x * P) {
                Pack<T> out;
                float g[P], later[P];
                load_columns<P>(here, pitch, i, g);
                load_columns<P>(here + pitch, pitch, i, later);
                for (u32 l = 0; l < P; l++) {
                    g[l] += later[l];
                    narrow(g[l], &out.v[l]);
                }
                store_columns<P>(here, pitch, i, g);
                store_pack(grad_recon + s * plane + n * pitch + i, out);
            }
        }
        // All of dy' must be in shared memory before it is multiplied with rows of W_dec.
        __syncthreads();
        for (u32 s = 0; s < parts; s++) {
            each_run(row, cuts[s], cuts[s + 1], [&](u32 staged, u32 run, u32 at) {
                entry_dots(w_dec, pitch, entry + staged, scale + staged, run, dy + (u64)s * pitch, step->sparsity,
                           grad + begin + at);
            });
        }
    }
    double code = 0.0;
    // Few numbers: one warp adds them up.
    if (threadIdx.x < WARP) {
        for (u32 e = threadIdx.x; e < held; e += WARP) code += (double)fabsf(share * row.value[e]);
        code = warp_sum(code);
    }
    squared = block_sum(squared, scratch);
    if (soft != 0) along = block_sum(along, scratch);
    if (threadIdx.x == 0) {
        loss[n].squared = squared / parts;
        // Of a dense code it was summed up when it was counted.
        if (!dense) loss[n].code = code + (double)soft_scale;
        if (soft != 0) soft[n].c = step->rest * ((float)along + step->sparsity);
    }

    double aux_squared = 0.0;
    if (aux_k > 0 && control->n_dead > 0) {
        float aux_factor = (float)(step->aux_coef * std[n] * per_value(step, d));
        // The sums above were the last readers of the entries, and block_sum waited for them.
        u32 aux_begin = aux_first[n], aux_held = aux_count[n];
        stage(aux_index + aux_begin, aux_value + aux_begin, aux_held, entry, scale);
        // All entries must be there before any thread sums over them.
        __syncthreads();
        by_slabs(w_dec, pitch, entry, scale, aux_held, dy, sums, true, 0.0f, aux_grad + aux_begin, [&](u32 c, float sum) {
            float off = c < d ? sum * sigma + *column<P>(miss, pitch, c) : 0.0f;
            float g = off * aux_factor;
            aux_squared += (double)off * off;
            narrow(g, &aux_recon[n * pitch + c]);
            return g;
        });
        aux_squared = block_sum(aux_squared, scratch);
    }
    if (threadIdx.x == 0) loss[n].aux = aux_squared;
}

// Quality of the reconstruction with the inference code: entries, or products with segments of W_dec made before
// (dense_recon, (P, N, pitch)). `row_active` counts the active latents of a dense code; `fired` the rows on which a latent is
// active, of a code of entries. by_prefix (N, P) gets the squared error of each prefix, or is null.
template <typename T>
__device__ void evaluate(const void *data, u32 kind, const u32 *rows, u32 d, const double *mean, const float *std, const T *w_dec,
                         const float *b_pre, u32 pitch, const u32 *index, const float *value, const u32 *first,
                         const u32 *count, u32 k, const u32 *ends, u32 parts, const float *dense_recon,
                         const u32 *row_active, const u32 *bad, u32 *fired, RowQuality *quality, double *by_prefix) {
    const u32 P = Pack<T>::N;
    DYNAMIC_SHARED(shared);
    __shared__ double scratch[32];
    __shared__ u32 cuts[MOST_PREFIXES + 1];
    u64 n = blockIdx.x, plane = (u64)gridDim.x * pitch;
    u32 *entry = (u32 *)shared;
    float *scale = (float *)(entry + k);
    // The sum up to the segment at hand, where there are prefixes.
    float *sum = scale + k;
    u64 x = (u64)rows[n] * d;
    double mu = mean[n];
    float sigma = std[n];
    u32 held = 0;
    if (dense_recon == 0) {
        held = count[n];
        stage(index + first[n], value + first[n], held, entry, scale);
        find_cuts(index + first[n], held, ends, parts, cuts);
        // All entries must be there before any thread sums over them.
        __syncthreads();
        // Counts of whole rows: the order of these atomics does not matter.
        for (u32 e = threadIdx.x; e < held; e += blockDim.x) atomicAdd(&fired[entry[e]], 1u);
    }
    double squared = 0.0, absolute = 0.0, xy = 0.0, xx = 0.0, yy = 0.0;
    for (u32 s = 0; s < parts; s++) {
        bool last = s + 1 == parts;
        u32 from = dense_recon == 0 ? cuts[s] : 0, to = dense_recon == 0 ? cuts[s + 1] : 0;
        squared = 0.0;
        for (u32 i = threadIdx.x * P; i < pitch; i += blockDim.x * P) {
            float acc[P];
            for (u32 l = 0; l < P; l++) {
                acc[l] = s > 0 ? sum[i + l] : 0.0f;
                if (dense_recon != 0) acc[l] += dense_recon[s * plane + n * pitch + i + l];
            }
            gather_columns(w_dec, pitch, i, entry + from, scale + from, to - from, acc);
            for (u32 l = 0; l < P && !last; l++) sum[i + l] = acc[l];
            for (u32 l = 0; l < P && i + l < d; l++) {
                double value_x = (double)stored(data, kind, x + i + l);
                double scaled = (double)(acc[l] + b_pre[i + l]) * sigma;
                double off = scaled - (double)(float)(value_x - mu);
                double y = scaled + mu;
                squared += off * off;
                if (!last) continue;
                absolute += fabs(off);
                xy += value_x * y;
                xx += value_x * value_x;
                yy += y * y;
            }
        }
        squared = block_sum(squared, scratch);
        if (threadIdx.x == 0 && by_prefix != 0) by_prefix[n * parts + s] = squared;
    }
    absolute = block_sum(absolute, scratch);
    xy = block_sum(xy, scratch);
    xx = block_sum(xx, scratch);
    yy = block_sum(yy, scratch);
    if (threadIdx.x == 0) {
        quality[n].squared = bad[n] != 0 ? F64_NAN : squared;
        quality[n].absolute = absolute;
        quality[n].cosine = xx > 0.0 && yy > 0.0 ? xy / sqrt(xx * yy) : 0.0;
        quality[n].active = dense_recon != 0 ? row_active[n] : held;
    }
}

#define DECODE(T, name, PLAIN, blocks)                                                                                 \
    extern "C" __global__ void __launch_bounds__(256, blocks)                                                          \
        name(const void *data, u32 kind, const u32 *rows, u32 d, const double *mean, const float *std,                 \
             const T *w_dec, const float *b_pre, u32 pitch, const u32 *index, const float *value, const u32 *first,    \
             const u32 *count, u32 k, const u32 *ends, u32 parts, const float *soft_recon, SoftRow *soft,              \
             const u32 *aux_index, const float *aux_value, const u32 *aux_first, const u32 *aux_count, u32 aux_k,      \
             const Step *step, const Control *control, T *grad_recon, float *grad, T *aux_recon, float *aux_grad,      \
             float *recon, RowLoss *loss) {                                                                            \
        decode<T, PLAIN>(data, kind, rows, d, mean, std, w_dec, b_pre, pitch, index, value, first, count, k, ends,     \
                         parts, soft_recon, soft, aux_index, aux_value, aux_first, aux_count, aux_k, step, control,    \
                         grad_recon, grad, aux_recon, aux_grad, recon, loss);                                          \
    }
DECODE(float, decode_f32, true, 3)
DECODE(bf16, decode_bf16, true, 3)
DECODE(float, decode_parts_f32, false, 3)
DECODE(bf16, decode_parts_bf16, false, 3)

#define EVALUATE(T, t)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256, 4)                                                               \
        evaluate_##t(const void *data, u32 kind, const u32 *rows, u32 d, const double *mean, const float *std,         \
                     const T *w_dec, const float *b_pre, u32 pitch, const u32 *index, const float *value,              \
                     const u32 *first, const u32 *count, u32 k, const u32 *ends, u32 parts, const float *dense_recon,  \
                     const u32 *row_active, const u32 *bad, u32 *fired, RowQuality *quality, double *by_prefix) {      \
        evaluate<T>(data, kind, rows, d, mean, std, w_dec, b_pre, pitch, index, value, first, count, k, ends, parts,   \
                    dense_recon, row_active, bad, fired, quality, by_prefix);                                          \
    }
EVALUATE(float, f32)
EVALUATE(bf16, bf16)
