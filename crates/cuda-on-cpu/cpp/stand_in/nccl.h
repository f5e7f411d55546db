// The part of NCCL that is called, between processes: what a rank brings to an exchange is a file in a folder that the id
// names, and every rank reads those of all. As lazy as the driver's part: work runs when something waits for its stream.
//
// STAND_IN_NCCL_FOLDER  where the folders of exchanges are made: /tmp
// STAND_IN_NCCL_DELAY   a seed: each exchange waits up to 20 ms, so that ranks come in any order
// STAND_IN_NCCL_KILL    "RANK:EXCHANGE": the process of that rank is killed at that exchange, counted from 1
// STAND_IN_NCCL_SKIP    "RANK:EXCHANGE": that rank leaves it out: a planted defect
// A rank that is gone is waited for without end, as with NCCL.
#pragma once
#include "state.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

struct UniqueId { char bytes[128]; };
struct Comm {
    std::string folder;
    int ranks, rank;
    uint64_t exchanges = 0;
    bool aborted = false;
};
int group_depth = 0;

bool named(const char *setting_name, const Comm &comm, uint64_t exchange) {
    int rank = -1;
    unsigned long long at = 0;
    return sscanf(setting(setting_name, ""), "%d:%llu", &rank, &at) == 2 && rank == comm.rank && at == exchange;
}
std::string file_of(const Comm &comm, uint64_t exchange, int rank) {
    return comm.folder + "/" + std::to_string(exchange) + "." + std::to_string(rank);
}
void bring(const Comm &comm, uint64_t exchange, const void *data, size_t bytes) {
    std::string path = file_of(comm, exchange, comm.rank), unfinished = path + ".tmp";
    FILE *file = fopen(unfinished.c_str(), "wb");
    fwrite(data, 1, bytes, file);
    fclose(file);
    rename(unfinished.c_str(), path.c_str());
    // All ranks have read the exchange before the last by now: they could not have come to the last else.
    if (exchange > 2) unlink(file_of(comm, exchange - 2, comm.rank).c_str());
}
std::vector<char> of_rank(const Comm &comm, uint64_t exchange, int rank) {
    std::string path = file_of(comm, exchange, rank);
    while (true) {
        if (FILE *file = fopen(path.c_str(), "rb")) {
            std::vector<char> bytes;
            char part[65536];
            for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) bytes.insert(bytes.end(), part, part + n);
            fclose(file);
            return bytes;
        }
        usleep(200);
    }
}
template <typename T> void add_up(T *sum, const std::vector<char> &part, size_t count) {
    for (size_t i = 0; i < count; i++) {
        T v;
        memcpy(&v, part.data() + i * sizeof(T), sizeof(T));
        sum[i] += v;
    }
}

} // namespace

// ncclResult_t, ncclDataType_t
enum { NCCL_INTERNAL = 3, NCCL_INVALID = 4 };
enum { NCCL_U32 = 3, NCCL_F32 = 7, NCCL_F64 = 8 };
inline size_t size_of(int type) { return type == NCCL_F64 ? 8 : 4; }

API int ncclGetVersion(int *version) { return *version = atoi(setting("STAND_IN_NCCL", "22800")), OK; }
API int ncclGetUniqueId(UniqueId *id) {
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "%s/nccl-XXXXXX", setting("STAND_IN_NCCL_FOLDER", "/tmp"));
    return mkdtemp(id->bytes) ? 0 : (int)NCCL_INTERNAL;
}
API int ncclCommInitRank(Comm **comm, int ranks, UniqueId id, int rank) {
    BEGIN;
    NOT_RECORDED;
    *comm = new Comm{id.bytes, ranks, rank};
    Comm &own = **comm;
    own.exchanges = 1;
    bring(own, 1, "here", 4);
    for (int r = 0; r < ranks; r++) of_rank(own, 1, r);
    return OK;
}
API int ncclGroupStart() { return group_depth++, OK; }
API int ncclGroupEnd() { return group_depth-- > 0 ? 0 : (int)NCCL_INVALID; }
namespace {
int exchange(Comm *comm, Stream *stream, const void *from, void *to, size_t count, int type, bool sums) {
    uint64_t number = ++comm->exchanges;
    if (named("STAND_IN_NCCL_SKIP", *comm, number)) { comm->exchanges--; return OK; }
    size_t bytes = count * size_of(type);
    add(stream, [=]() -> Result {
        if (!inside(memory, (uint64_t)from, bytes) || !inside(memory, (uint64_t)to, sums ? bytes : bytes * (size_t)comm->ranks))
            return complain(ILLEGAL_ADDRESS, "an exchange outside of live memory");
        if (named("STAND_IN_NCCL_KILL", *comm, number)) kill(getpid(), SIGKILL);
        if (uint64_t seed = strtoull(setting("STAND_IN_NCCL_DELAY", "0"), nullptr, 10))
            usleep((useconds_t)((seed * 7919 + number * 104729 + (uint64_t)comm->rank * 15485863) % 20000));
        std::string own = std::to_string(count) + "/" + std::to_string(type) + (sums ? "s" : "g");
        std::vector<char> sent(32 + bytes);
        snprintf(sent.data(), 32, "%s", own.c_str());
        memcpy(sent.data() + 32, from, bytes);
        bring(*comm, number, sent.data(), sent.size());
        std::vector<char> sum(bytes, 0);
        for (int r = 0; r < comm->ranks; r++) {
            std::vector<char> got = of_rank(*comm, number, r);
            if (own != got.data())
                return complain(LAUNCH_FAILED, "exchange %llu is %s here and %s of rank %d", (unsigned long long)number,
                                own.c_str(), got.data(), r);
            std::vector<char> part(got.begin() + 32, got.end());
            if (!sums) { memcpy(static_cast<char *>(to) + (size_t)r * bytes, part.data(), bytes); continue; }
            if (type == NCCL_F32) add_up((float *)sum.data(), part, count);
            if (type == NCCL_F64) add_up((double *)sum.data(), part, count);
            if (type == NCCL_U32) add_up((uint32_t *)sum.data(), part, count);
        }
        if (sums) memcpy(to, sum.data(), bytes);
        return OK;
    });
    return OK;
}
} // namespace
API int ncclAllReduce(const void *from, void *to, size_t count, int type, int, Comm *comm, Stream *stream) {
    BEGIN;
    return exchange(comm, stream, from, to, count, type, true);
}
API int ncclAllGather(const void *from, void *to, size_t count, int type, Comm *comm, Stream *stream) {
    BEGIN;
    return exchange(comm, stream, from, to, count, type, false);
}
API int ncclCommGetAsyncError(Comm *, int *error) { return *error = OK; }
API int ncclCommAbort(Comm *comm) { return comm->aborted = true, OK; }
API int ncclCommDestroy(Comm *comm) { return delete comm, OK; }
API const char *ncclGetErrorString(int) { return "an error of the stand-in"; }
API const char *ncclGetLastError(Comm *) { return ""; }
