// Gradients of a latent's row of each matrix, and Adam on them at once: no gradient of the size of the weights exists,
// unless the clip norm, or a look inside, asks for one.
//
//   dW_dec_j = sum_e h_e G_n + sum_a h_a dya'_n + dense_dec_j        e, a: the latent's entries and aux entries
//            + per_entry sum_n h_nj W_dec_j / |W_dec_j|              where a penalty has the lengths
//   dW_enc_j = sum_e dz_e (x' - b_pre)_n + sum_a dza_a (x' - b_pre)_n + dense_enc_j
//   db_lat_j = sum_e dz_e + sum_a dza_a + dense_bias_j
//   partial += db_lat_j W_enc_j                                      the part of db_pre that goes through the encoder
// A tied model has one matrix and adds both. With unit-norm rows the gradient is freed of its part along the decoder
// row, and the row is scaled back to length 1 after the step (unit 1; with unit 2 the gradient was freed before).
//
// input, aux_recon (N, pitch); grad_recon (P, N, pitch) has G of each segment, of which a latent meets its own: ends (P) are
// the prefixes, or null. row[e] is the row of entry e; dense rows count from `first`. Thresholds are trained where there is a
// gradient for them, move together besides, and stay at 0 or above.
// Blocks share out [first, first + latents) by latents, entries and runs together; a thread owns packs of 16 bytes of columns.
// Dynamic shared memory: 3 pitch floats (encoder gradient, decoder gradient, partial).
//
// 0. list_runs: a latent may fire on most rows. Long lists were cut into runs (index.cu); a block takes every gridDim-th run
// and sums it as in step 1, into a row of its own.
// 1. Entries are brought to shared memory, 256 at a time, and every thread adds its columns, in order of rows; of a list
// that was cut, the rows of its runs, in their order.
// 2. The constraint on the gradient. 3. The part of db_pre, from the weights before the step, and Adam, row scale,
// average and its row scale, and the rounded copies; biases and thresholds, 32 latents at a time; or the gradient to memory,
// with its sum of squares.
//
// Every sum has a fixed order (src/index: entries ascend; blocks own their latents). Reads 2 pitch operands an entry,
// from cache; moves 6 pitch float32 a matrix row, and one rounded copy. Source of the layout: src/backend/cpu/block.rs.
#include "common.cuh"

#define ENTRIES 256u

// A list of entries by latent, as the inverted index has it; null offsets: none.
struct Entries {
    const u32 *offsets;
    const u32 *slots;
    const float *value;
    const float *grad;
    const u32 *row;
    Cut cut;
    // What run r adds: rows r of run_enc and run_dec (runs, pitch), and run_bias[r].
    float *run_enc;
    float *run_dec;
    float *run_bias;
};

struct Staged {
    u32 row[ENTRIES];
    float value[ENTRIES];
    float grad[ENTRIES];
};

// Adds the entries begin .. end of a list to the thread's columns i .. i + N, and their gradients to `bias`.
template <typename T, bool TIED>
__device__ inline void add_entries(Staged *staged, Entries list, u32 begin, u32 end, const T *input, const T *recon,
                                   u32 pitch, u32 i, float *enc, float *dec, float *bias) {
    const u32 P = Pack<T>::N;
    for (; begin < end; begin += ENTRIES) {
        u32 held = min(ENTRIES, end - begin);
        // The entries before these must have been used by all threads.
        __syncthreads();
        for (u32 e = threadIdx.x; e < held; e += blockDim.x) {
            u32 slot = list.slots[begin + e];
            staged->row[e] = list.row[slot];
            staged->value[e] = list.value[slot];
            staged->grad[e] = list.grad[slot];
        }
        // All entries must be there before they are used.
        __syncthreads();
        for (u32 e = 0; e < held; e++) *bias += staged->grad[e];
        if (i >= pitch) continue;
#pragma unroll 4
        for (u32 e = 0; e < held; e++) {
            u64 at = (u64)staged->row[e] * pitch + i;
            Pack<T> in = load_pack(input + at), out = load_pack(recon + at);
            float h = staged->value[e], g = staged->grad[e];
            for (u32 l = 0; l < P; l++) {
                enc[l] += g * widen(in.v[l]);
                if (TIED) {
                    enc[l] += h * widen(out.v[l]);
                } else {
                    dec[l] += h * widen(out.v[l]);
                }
            }
        }
    }
}

// Row r of what runs add to a gradient.
__device__ inline float *run_row(float *rows, u32 r, u32 pitch) { return rows + (u64)r * pitch; }

// sum += four columns of a row of a run.
__device__ inline void add_run(float *sum, const float *run) {
    Pack<float> part = load_pack(run);
    for (u32 l = 0; l < 4; l++) sum[l] += part.v[l];
}

// Adds all entries of a latent; those of a list that was cut are summed by run.
template <typename T, bool TIED>
__device__ inline void add_list(Staged *staged, Entries list, u32 j, const T *input, const T *recon, u32 pitch, u32 i,
                                float *enc, float *dec, float *bias) {
    const u32 P = Pack<T>::N;
    u32 begin = list.offsets[j], end = list.offsets[j + 1], runs = cut_into(list.cut, j, end - begin);
    if (runs == 0) {
        add_entries<T, TIED>(staged, list, begin, end, input, recon, pitch, i, enc, dec, bias);
        return;
    }
    u32 first = list.cut.first[j];
    for (u32 r = first; r < first + runs; r++) {
        *bias += list.run_bias[r];
        for (u32 l = 0; l < P && i < pitch; l += 4) {
            add_run(enc + l, run_row(list.run_enc, r, pitch) + i + l);
            if (!TIED) add_run(dec + l, run_row(list.run_dec, r, pitch) + i + l);
        }
    }
}

// The gradient of the reconstruction that a latent's entries meet: that of its own segment.
template <typename T>
__device__ inline const T *met_by(const T *recon, u32 j, const u32 *ends, u32 parts, u32 n_rows, u32 pitch) {
    for (u32 s = 0; s + 1 < parts; s++) recon += j >= ends[s] ? (u64)n_rows * pitch : 0;
    return recon;
}

// Step 0.
template <typename T, bool TIED>
__device__ void list_runs(u32 m, u32 pitch, const u32 *ends, u32 parts, const T *input, const T *recon, Entries list,
                          const Step *step, const Control *control) {
    const u32 P = Pack<T>::N;
    __shared__ Staged staged;
    if (control->stopped) return;
    u32 runs = list.cut.first[m];
    for (u32 r = blockIdx.x; r < runs; r += gridDim.x) {
        u32 j = list.cut.latent[r];
        u32 begin = list.offsets[j] + (r - list.cut.first[j]) * list.cut.length;
        u32 end = min(begin + list.cut.length, list.offsets[j + 1]);
        const T *met = met_by(recon, j, ends, parts, step->n_rows, pitch);
        for (u32 start = 0; start < pitch; start += blockDim.x * P) {
            // All threads take part in bringing entries, also those beyond the last column.
            u32 i = start + threadIdx.x * P;
            alignas(16) float enc[P] = {}, dec[P] = {};
            float bias = 0.0f;
            add_entries<T, TIED>(&staged, list, begin, end, input, met, pitch, i, enc, dec, &bias);
            for (u32 l = 0; l < P && i < pitch; l += 4) {
                store_pack(run_row(list.run_enc, r, pitch) + i + l, load_pack(enc + l));
                if (!TIED) store_pack(run_row(list.run_dec, r, pitch) + i + l, load_pack(dec + l));
            }
            if (i == 0) list.run_bias[r] = bias;
        }
    }
}

// Frees `grad` of its part along the row `w`; a thread takes every blockDim-th column.
__device__ inline void project(float *grad, const float *w, u32 d, double *scratch) {
    double along = 0.0;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) along += (double)grad[i] * w[i];
    along = block_sum(along, scratch);
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) grad[i] = (float)((double)grad[i] - along * w[i]);
    // Adam gives the columns to other threads.
    __syncthreads();
}

// part += bias w, four columns of a row of W_enc before the step: the part of db_pre.
__device__ inline void add_part(float *part, float bias, Pack<float> w) {
    Pack<float> sum = load_pack(part);
    for (u32 l = 0; l < 4; l++) sum.v[l] += bias * w.v[l];
    store_pack(part, sum);
}

// Adam on one row, whose gradient lies in shared memory; `unit` scales it back to length 1. A thread owns packs of four
// columns: what a block asks of memory at once must cover the time that memory takes to answer. A row of W_enc adds to
// `part` on the way.
template <bool ENC>
__device__ inline void update_row(const Step *step, float clip, Tensor t, u64 at, float *grad, u32 d, bool unit,
                                  bf16 *copy, double *scratch, float *part, float bias) {
    double squares = 0.0;
    for (u32 i = threadIdx.x * 4; i < d; i += blockDim.x * 4) {
        Pack<float> w = load_pack(t.w + at + i), m = load_pack(t.m + at + i), v = load_pack(t.v + at + i);
        Pack<float> g = load_pack(grad + i);
        if (ENC) add_part(part + i, bias, w);
        // Columns beyond d keep their zeros: with an epsilon of 0 a step there would be 0 / 0.
        for (u32 l = 0; l < 4 && i + l < d; l++) {
            w.v[l] = adam(step, clip, step->keep, w.v[l], &m.v[l], &v.v[l], g.v[l]);
            if (unit) squares += (double)w.v[l] * w.v[l];
        }
        store_pack(t.m + at + i, m);
        store_pack(t.v + at + i, v);
        store_pack(grad + i, w);
    }
    double scale = 1.0, average_squares = 0.0;
    if (unit) {
        double norm = sqrt(block_sum(squares, scratch));
        if (norm > 0.0) scale = 1.0 / norm;
    }
    for (u32 i = threadIdx.x * 4; i < d; i += blockDim.x * 4) {
        Pack<float> w = load_pack(grad + i);
        if (unit) {
            for (u32 l = 0; l < 4; l++) w.v[l] = (float)((double)w.v[l] * scale);
        }
        store_pack(t.w + at + i, w);
        if (t.e != 0) {
            Pack<float> e = load_pack(t.e + at + i);
            for (u32 l = 0; l < 4; l++) {
                e.v[l] = averaged(step->ema_keep, e.v[l], w.v[l]);
                if (unit) average_squares += (double)e.v[l] * e.v[l];
            }
            store_pack(t.e + at + i, e);
        }
        if (copy != 0) {
            Pack<bf16, 4> rounded;
            for (u32 l = 0; l < 4; l++) narrow(w.v[l], &rounded.v[l]);
            store_pack(copy + at + i, rounded);
        }
    }
    if (!unit || t.e == 0) return;
    // The mean of rows of length 1 is shorter than that. Each thread scales the columns that it has just written.
    double norm = sqrt(block_sum(average_squares, scratch));
    if (norm == 0.0) return;
    for (u32 i = threadIdx.x * 4; i < d; i += blockDim.x * 4) {
        Pack<float> e = load_pack(t.e + at + i);
        for (u32 l = 0; l < 4; l++) e.v[l] = (float)(e.v[l] / norm);
        store_pack(t.e + at + i, e);
    }
}

// Writes a gradient row to memory; returns its sum of squares over the thread's columns.
__device__ inline double store_row(float *to, const float *grad, u32 d) {
    double squares = 0.0;
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) {
        to[i] = grad[i];
        squares += (double)grad[i] * grad[i];
    }
    return squares;
}

// Where dense gradients come from, and where gradients go that are kept; null: nowhere.
struct Dense {
    const float *enc;
    const float *dec;
    const float *bias;
    const float *threshold;
    const float *code; // sums of each latent's code over rows, where the penalty has lengths
};
struct Kept {
    float *enc;
    float *dec;
    float *bias;
    float *threshold;
    double *squares;
};

// Adds to `grad` what the length of the decoder row `w` adds to the penalty's gradient.
__device__ inline void add_length(float *grad, const float *w, u32 d, double factor) {
    for (u32 i = threadIdx.x; i < d; i += blockDim.x) grad[i] += (float)factor * w[i];
    // The columns belong to other threads later.
    __syncthreads();
}

// Adam on one value of a vector, to which `more` is added; `least` bounds it from below.
__device__ inline void update_value(const Step *step, float clip, Tensor t, u32 j, float grad, float more, float least) {
    float w = adam(step, clip, 1.0f, t.w[j], &t.m[j], &t.v[j], grad) + more;
    // What is no number stays so.
    if (w < least) w = least;
    t.w[j] = w;
    if (t.e != 0) t.e[j] = averaged(step->ema_keep, t.e[j], w);
}

// Where the share of `block` of `blocks` begins among `latents` latents from `first` on, so that all shares cost about the same:
// the next share begins where it ends. `up_to` is what the latents before each cost (src/index), or null where all cost the
// same. All lanes of a warp call it.
__device__ inline u32 share_from(const u64 *up_to, u32 first, u32 latents, u32 block, u32 blocks) {
    if (up_to == 0) return (u32)((u64)block * latents / blocks);
    auto cost = [&](u32 place) { return up_to[first + place] - up_to[first]; };
    u64 wanted = cost(latents) * block / blocks;
    u32 low = 0, high = latents, lane = threadIdx.x % WARP;
    // Costs ascend with the latents: of 32 places that lie evenly between, so many are too low.
    while (low < high) {
        u32 step = (high - low + WARP - 1) / WARP, place = low + lane * step;
        u32 too_low = __popc(__ballot_sync(FULL, place < high && cost(place) < wanted));
        if (too_low == 0) break;
        high = min(high, low + too_low * step);
        low += (too_low - 1) * step + 1;
    }
    // The place before may be nearer.
    return low > 0 && 2 * wanted < cost(low - 1) + cost(low) ? low - 1 : low;
}

template <typename T, bool TIED>
__device__ void latent_update(u32 first, u32 latents, const u64 *cost, u32 d, u32 pitch, const u32 *ends, u32 parts, const T *input,
                              const T *recon, const T *aux_recon, Entries main, Entries aux, Dense dense, Kept kept,
                              const float *lengths, u32 unit, const Model *model, const Step *step, const Control *control,
                              float *partial) {
    const u32 P = Pack<T>::N;
    DYNAMIC_SHARED(shared);
    __shared__ Staged staged;
    __shared__ double scratch[32];
    __shared__ float biases[WARP];
    __shared__ u32 share[2];
    if (control->stopped) return;
    float *enc_row = (float *)shared, *dec_row = enc_row + pitch, *part = dec_row + pitch;
    for (u32 i = threadIdx.x; i < pitch; i += blockDim.x) part[i] = 0.0f;
    double squares = 0.0;
    if (threadIdx.x < WARP) {
        for (u32 which = 0; which < 2; which++) {
            u32 place = share_from(cost, first, latents, blockIdx.x + which, gridDim.x);
            if (threadIdx.x == 0) share[which] = place;
        }
    }
    // All threads must know the block's share.
    __syncthreads();
    for (u32 at = share[0]; at < share[1]; at++) {
        u32 j = first + at;
        u64 row = (u64)j * pitch;
        float bias = 0.0f;
        // A dense gradient was made of the latent's own segment.
        const T *met = met_by(recon, j, ends, main.offsets != 0 ? parts : 1, step->n_rows, pitch);
        for (u32 start = 0; start < pitch; start += blockDim.x * P) {
            // All threads take part in bringing entries, also those beyond the last column.
            u32 i = start + threadIdx.x * P;
            alignas(16) float enc[P], dec[P];
            // A row ends with a pack.
            for (u32 l = 0; l < P; l += 4) {
                Pack<float> none = {};
                u64 from = (u64)at * pitch + i + l;
                store_pack(enc + l, dense.enc != 0 && i < pitch ? load_pack(dense.enc + from) : none);
                store_pack(dec + l, dense.dec != 0 && i < pitch ? load_pack(dense.dec + from) : none);
            }
            bias = dense.bias != 0 ? dense.bias[at] : 0.0f;
            if (main.offsets != 0) {
                add_list<T, TIED>(&staged, main, j, input, met, pitch, i, enc, dec, &bias);
            }
            if (aux.offsets != 0) {
                add_list<T, TIED>(&staged, aux, j, input, aux_recon, pitch, i, enc, dec, &bias);
            }
            for (u32 l = 0; l < P && i < pitch; l += 4) {
                store_pack(enc_row + i + l, load_pack(enc + l));
                if (!TIED) store_pack(dec_row + i + l, load_pack(dec + l));
            }
        }
        // Columns of the rows belong to other threads from here on.
        __syncthreads();
        const Tensor *decoder = TIED ? &model->enc : &model->dec;
        if (dense.code != 0 && lengths[j] > 0.0f) {
            double factor = (double)control->per_entry * dense.code[at] / lengths[j];
            add_length(TIED ? enc_row : dec_row, decoder->w + row, d, factor);
        }
        if (unit == 1) project(TIED ? enc_row : dec_row, decoder->w + row, d, scratch);
        if (kept.enc != 0) {
            for (u32 i = threadIdx.x * 4; i < d; i += blockDim.x * 4) {
                add_part(part + i, bias, load_pack(model->enc.w + row + i));
            }
            squares += store_row(kept.enc + (u64)at * pitch, enc_row, d);
            if (!TIED) squares += store_row(kept.dec + (u64)at * pitch, dec_row, d);
            if (threadIdx.x == 0) {
                kept.bias[at] = bias;
                squares += (double)bias * bias;
                if (dense.threshold != 0) {
                    float grad = dense.threshold[at];
                    kept.threshold[at] = grad;
                    squares += (double)grad * grad;
                }
            }
        } else {
            float clip = control->clip;
            update_row<true>(step, clip, model->enc, row, enc_row, d, TIED && unit != 0, model->enc_copy, scratch, part,
                             bias);
            if (!TIED) {
                update_row<false>(step, clip, model->dec, row, dec_row, d, unit != 0, model->dec_copy, scratch, part,
                                  bias);
            }
            if (threadIdx.x == 0) biases[(at - share[0]) % WARP] = bias;
        }
        // All threads are done with the rows before the next latent's are written.
        __syncthreads();
        // Vectors are updated 32 latents at a time, so that memory is waited for once for all of them.
        u32 values = (at - share[0]) % WARP + 1, of = at + 1 - values + threadIdx.x;
        if (kept.enc != 0 || (values < WARP && at + 1 < share[1]) || threadIdx.x >= values) continue;
        update_value(step, control->clip, model->lat, first + of, biases[threadIdx.x], 0.0f, -F32_INF);
        if (dense.threshold != 0) {
            update_value(step, control->clip, model->threshold, first + of, dense.threshold[of], control->common, 0.0f);
        }
    }
    if (partial != 0) {
        for (u32 i = threadIdx.x; i < d; i += blockDim.x) partial[(u64)blockIdx.x * pitch + i] += part[i];
    }
    if (kept.enc != 0) {
        squares = block_sum(squares, scratch);
        if (threadIdx.x == 0) kept.squares[blockIdx.x] += squares;
    }
}

// The arguments that are a list of entries, and the list.
#define LIST_ARGS(of)                                                                                                  \
    const u32 *of##offsets, const u32 *of##slots, const float *of##value, const float *of##grad, const u32 *of##row,   \
        CUT_ARGS(of), float *of##run_enc, float *of##run_dec, float *of##run_bias
#define LIST(of)                                                                                                       \
    {of##offsets, of##slots, of##value, of##grad, of##row, CUT(of), of##run_enc, of##run_dec, of##run_bias}

#define LATENT_UPDATE(T, t, TIED, tied)                                                                                \
    extern "C" __global__ void __launch_bounds__(256, 3) latent_update_##t##_##tied(                                   \
        u32 first, u32 latents, const u64 *cost, u32 d, u32 pitch, const u32 *ends, u32 parts, const T *input,         \
        const T *recon, const T *aux_recon,                                                                            \
        LIST_ARGS(), LIST_ARGS(aux_),                                                                                  \
        const float *dense_enc,                                                                                        \
        const float *dense_dec, const float *dense_bias, const float *dense_threshold, const float *dense_code,        \
        float *kept_enc, float *kept_dec, float *kept_bias, float *kept_threshold, double *squares,                    \
        const float *lengths, u32 unit, const Model *model, const Step *step, const Control *control,                  \
        float *partial) {                                                                                              \
        Entries main = LIST(), aux = LIST(aux_);                                                                       \
        Dense dense = {dense_enc, dense_dec, dense_bias, dense_threshold, dense_code};                                 \
        Kept kept = {kept_enc, kept_dec, kept_bias, kept_threshold, squares};                                          \
        latent_update<T, TIED>(first, latents, cost, d, pitch, ends, parts, input, recon, aux_recon, main, aux, dense, \
                               kept, lengths, unit, model, step, control, partial);                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 3)                                                               \
        list_runs_##t##_##tied(u32 m, u32 pitch, const u32 *ends, u32 parts, const T *input, const T *recon,           \
                               LIST_ARGS(), const Step *step, const Control *control) {                                \
        Entries list = LIST();                                                                                         \
        list_runs<T, TIED>(m, pitch, ends, parts, input, recon, list, step, control);                                  \
    }
LATENT_UPDATE(float, f32, true, tied)
LATENT_UPDATE(float, f32, false, untied)
LATENT_UPDATE(bf16, bf16, true, tied)
LATENT_UPDATE(bf16, bf16, false, untied)
