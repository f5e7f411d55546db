// The part of cuBLAS that is called, by plain loops.
#pragma once
#include "state.h"

namespace {

enum { F32 = 0, BF16 = 14 };
struct Blas {
    Stream *stream = nullptr;
    uint64_t workspace = 0;
};
float element(const void *data, int type, long at) {
    if (type == F32) return static_cast<const float *>(data)[at];
    uint32_t bits = (uint32_t) static_cast<const uint16_t *>(data)[at] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
void put(void *data, int type, long at, float value) {
    if (type == F32) {
        static_cast<float *>(data)[at] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits += value == value ? 0x7fff + (bits >> 16 & 1) : 0; // to the nearest, ties to even
    static_cast<uint16_t *>(data)[at] = (uint16_t)(bits >> 16);
}

} // namespace

// cublasStatus_t
enum { NOT_STARTED = 1, WRONG_VALUE = 7, FAILED = 13 };
#define BEGIN_BLAS                                                                                                     \
    Call call(__func__);                                                                                               \
    if (call.result) return FAILED

API int cublasGetProperty(int which, int *value) { return *value = which == 0 ? 13 : 0, OK; }
API int cublasCreate_v2(Blas **blas) {
    BEGIN_BLAS;
    if (outside_records(__func__)) return NOT_STARTED;
    *blas = new Blas();
    return OK;
}
API int cublasDestroy_v2(Blas *blas) {
    delete blas;
    BEGIN_BLAS;
    break_records(); // it waits for the device
    return OK;
}
API int cublasSetStream_v2(Blas *blas, Stream *s) {
    BEGIN_BLAS;
    *blas = {s, 0};
    s->computes = true;
    return OK;
}
API int cublasSetWorkspace_v2(Blas *blas, void *workspace, size_t bytes) {
    BEGIN_BLAS;
    if (!inside(memory, (uint64_t)workspace, bytes)) return WRONG_VALUE;
    blas->workspace = (uint64_t)workspace;
    return OK;
}
API int cublasSetMathMode(Blas *, int) {
    BEGIN_BLAS;
    return OK;
}
API int cublasGemmEx(Blas *blas, int turn_a, int turn_b, int m, int n, int k, const float *alpha, const void *a,
                     int type_a, int lda, const void *b, int type_b, int ldb, const float *beta, void *c, int type_c,
                     int ldc, int, int) {
    BEGIN_BLAS;
    if (!inside(memory, blas->workspace, 1)) return NOT_STARTED; // it would take memory by itself
    if (m < 0 || n < 0 || k < 0 || lda < std::max(1, turn_a ? k : m) || ldb < std::max(1, turn_b ? n : k) ||
        ldc < std::max(1, m) || type_a != type_b || (type_a == F32 && type_c != F32))
        return WRONG_VALUE;
    float one = *alpha, kept = *beta;
    auto extent = [](int type, long rows, long cols, long ld) {
        return rows && cols ? (size_t)((cols - 1) * ld + rows) * (type == F32 ? 4 : 2) : 0;
    };
    size_t bytes_a = turn_a ? extent(type_a, k, m, lda) : extent(type_a, m, k, lda);
    size_t bytes_b = turn_b ? extent(type_b, n, k, ldb) : extent(type_b, k, n, ldb);
    size_t bytes_c = extent(type_c, m, n, ldc);
    add(blas->stream, [=]() -> Result {
        if (!inside(memory, (uint64_t)a, bytes_a) || !inside(memory, (uint64_t)b, bytes_b) ||
            !inside(memory, (uint64_t)c, bytes_c))
            return complain(ILLEGAL_ADDRESS, "a dense product outside of live memory");
        for (long j = 0; j < n; j++)
            for (long i = 0; i < m; i++) {
                float sum = 0;
                for (long l = 0; l < k; l++)
                    sum += element(a, type_a, turn_a ? l + i * lda : i + l * lda) *
                           element(b, type_b, turn_b ? j + l * ldb : l + j * ldb);
                long at = i + j * ldc;
                put(c, type_c, at, one * sum + (kept == 0 ? 0 : kept * element(c, type_c, at)));
            }
        return OK;
    });
    return OK;
}
