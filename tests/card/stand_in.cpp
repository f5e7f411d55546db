// A driver of CUDA and a cuBLAS that run on the CPU, for tests: the functions that `src/backend/cuda` calls, with the
// kernels of the emulation. It is as lazy as the documentation allows: work runs when something waits for it, and
// memory is read and written then. So a wait that is missing, memory that is freed or written too early, and a call
// that a recorded stream must not see give an error or wrong results here.
//
// STAND_IN_KERNELS    shared objects, separated by colons: the emulation itself, then the kernels
// STAND_IN_CARD       names of cards and their compute capabilities: "Name=9.0;Other=7.0"; empty for none
// STAND_IN_SERVES     newest CUDA that the driver serves, as it counts: 13000
// STAND_IN_MEMORY     bytes of a card's memory
// STAND_IN_LOST       the kernel, counted from 1, at which the card is lost
// STAND_IN_COUNTS     a file for the numbers of calls, written at the end
#include "emulator.h"
#undef __shared__

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Result { // CUresult
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, NO_DEVICE = 100,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
    ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900,
};

typedef std::function<Result()> Work;
typedef std::vector<Work> Graph;

struct Event {
    uint64_t recorded = 0, done = 0; // how often
    std::chrono::steady_clock::time_point when;
};
struct Stream {
    std::deque<Work> queue;
    std::unique_ptr<Graph> record; // what is recorded; null where nothing is
};
struct Function {
    const emulator::Kernel *kernel;
    unsigned shared; // most dynamic shared memory, in bytes
};
struct Card {
    std::string name;
    int major, minor;
};

// What a card of compute capability 8.6 gives a block in all, and without being asked.
const unsigned SHARED = 99 << 10, SHARED_UNASKED = 48 << 10;
// Static shared memory of a kernel with dynamic shared memory besides, at most (`tests/nvrtc.rs` holds it to that).
const unsigned STATIC_SHARED = 4096;

std::recursive_mutex lock_all;
std::map<uint64_t, size_t> memory, pinned;
std::map<std::string, Function> functions;
std::map<std::string, uint64_t> counts;
std::vector<Card> cards;
std::vector<Stream *> streams;
uint64_t used = 0, kernels_run = 0, chance = 1;
bool initialized = false;
Result lost = OK; // an error that stays
thread_local bool has_context = false;
int (*launch_emulated)(const emulator::Kernel *, const uint64_t *, unsigned, unsigned, unsigned, unsigned, unsigned,
                       uint64_t, char *, size_t);

const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}
uint64_t total() { return strtoull(setting("STAND_IN_MEMORY", "1073741824"), nullptr, 10); }

uint64_t draw() { return chance = chance * 6364136223846793005u + 1442695040888963407u, chance >> 33; }

Result complain(Result result, const char *format, ...) __attribute__((format(printf, 2, 3)));
Result complain(Result result, const char *format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "STAND-IN: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    return result;
}

// Whether `bytes` at `address` lie in one live block.
bool inside(const std::map<uint64_t, size_t> &blocks, uint64_t address, size_t bytes) {
    auto next = blocks.upper_bound(address);
    if (next == blocks.begin()) return false;
    --next;
    return address + bytes <= next->first + next->second;
}

// Every call begins so: counted, refused after an error that stays, and, where it needs a context, without one.
struct Call {
    std::lock_guard<std::recursive_mutex> hold;
    Result result;
    Call(const char *name, bool needs_context = true) : hold(lock_all), result(lost) {
        counts[name]++;
        if (result == OK && needs_context && !has_context) result = complain(INVALID_CONTEXT, "%s: no current context", name);
    }
};
#define BEGIN_IN(needs_context)                                                                                        \
    Call call(__func__, needs_context);                                                                                \
    if (call.result) return call.result
#define BEGIN BEGIN_IN(true)
#define BEGIN_ANYWHERE BEGIN_IN(false)

// What waits or allocates must not be called by a thread that records (capture mode THREAD_LOCAL).
Result outside_records(const char *name) {
    for (Stream *s : streams)
        if (s->record) return complain(CAPTURE_UNSUPPORTED, "%s while a stream is recorded", name);
    return OK;
}
#define NOT_RECORDED                                                                                                   \
    if (Result refused = outside_records(__func__)) return refused

Result run_one(Stream &s) {
    Work work = std::move(s.queue.front());
    s.queue.pop_front();
    Result result = work();
    if (result && !lost) lost = result;
    return lost;
}
Result drain(Stream &s) {
    while (!s.queue.empty() && !lost) run_one(s);
    return lost;
}
Result add(Stream *s, Work work) {
    if (s->record)
        s->record->push_back(std::move(work));
    else
        s->queue.push_back(std::move(work));
    return OK;
}

bool load_kernels() {
    std::string list = setting("STAND_IN_KERNELS", "");
    for (size_t at = 0, first = 1; at < list.size(); first = 0) {
        size_t end = std::min(list.find(':', at), list.size());
        std::string path = list.substr(at, end - at);
        at = end + 1;
        void *library = dlopen(path.c_str(), RTLD_NOW | (first ? RTLD_GLOBAL : RTLD_LOCAL));
        if (!library) return complain(NOT_FOUND, "%s", dlerror()), false;
        if (first) {
            *reinterpret_cast<void **>(&launch_emulated) = dlsym(library, "emulator_launch");
            continue;
        }
        auto table = static_cast<const emulator::Kernel *>(dlsym(library, "emulator_kernels"));
        auto count = static_cast<const size_t *>(dlsym(library, "emulator_kernel_count"));
        for (size_t i = 0; i < *count; i++) functions[table[i].name] = {&table[i], SHARED_UNASKED - STATIC_SHARED};
    }
    return launch_emulated && !functions.empty();
}

void write_counts() {
    const char *path = getenv("STAND_IN_COUNTS");
    FILE *file = path ? fopen(path, "w") : nullptr;
    if (!file) return;
    counts["bytes left"] = used;
    counts["pinned blocks left"] = pinned.size();
    counts["streams left"] = streams.size();
    for (auto &count : counts) fprintf(file, "%s\t%llu\n", count.first.c_str(), (unsigned long long)count.second);
    fclose(file);
}

// A kernel as it is launched: its arguments are copied.
Work kernel_work(const emulator::Kernel *kernel, unsigned gx, unsigned gy, unsigned block, unsigned shared,
                 std::vector<uint64_t> args) {
    return [=]() -> Result {
        const char *lost_at = getenv("STAND_IN_LOST");
        if (++kernels_run == strtoull(lost_at ? lost_at : "0", nullptr, 10)) return LAUNCH_FAILED;
        for (size_t i = 0; i < args.size(); i++)
            if (kernel->kinds[i] == 'p' && args[i] && !inside(memory, args[i], 0))
                return complain(ILLEGAL_ADDRESS, "%s: argument %zu is not in live memory", kernel->name, i);
        char message[512] = "";
        int failed = launch_emulated(kernel, args.data(), gx, gy, 0, block, shared, kernels_run, message, sizeof message);
        return failed ? complain(LAUNCH_FAILED, "%s", message) : OK;
    };
}

} // namespace

// ---- the driver

API int cuDriverGetVersion(int *version) {
    BEGIN_ANYWHERE;
    *version = atoi(setting("STAND_IN_SERVES", "13000"));
    return OK;
}
API int cuInit(unsigned) {
    BEGIN_ANYWHERE;
    if (initialized) return OK;
    std::string list = setting("STAND_IN_CARD", "Stand-in=9.0");
    for (size_t at = 0; at < list.size();) {
        size_t end = std::min(list.find(';', at), list.size()), equals = list.find('=', at);
        Card card = {list.substr(at, equals - at), 0, 0};
        sscanf(list.c_str() + equals, "=%d.%d", &card.major, &card.minor);
        cards.push_back(card);
        at = end + 1;
    }
    if (cards.empty()) return NO_DEVICE;
    initialized = true;
    atexit(write_counts);
    return load_kernels() ? OK : NOT_FOUND;
}
API int cuDeviceGetCount(int *count) {
    BEGIN_ANYWHERE;
    if (!initialized) return NOT_INITIALIZED;
    *count = (int)cards.size();
    return OK;
}
API int cuDeviceGet(int *device, int ordinal) {
    BEGIN_ANYWHERE;
    if (ordinal < 0 || ordinal >= (int)cards.size()) return INVALID_DEVICE;
    *device = ordinal;
    return OK;
}
API int cuDeviceGetName(char *name, int size, int device) {
    BEGIN_ANYWHERE;
    snprintf(name, (size_t)size, "%s", cards[(size_t)device].name.c_str());
    return OK;
}
API int cuDeviceTotalMem_v2(size_t *bytes, int) {
    BEGIN_ANYWHERE;
    *bytes = total();
    return OK;
}
API int cuDeviceGetAttribute(int *value, int attribute, int device) {
    BEGIN_ANYWHERE;
    const Card &card = cards[(size_t)device];
    switch (attribute) {
    case 16: *value = 4; return OK;       // multiprocessors
    case 75: *value = card.major; return OK; // compute capability
    case 76: *value = card.minor; return OK;
    case 97: *value = SHARED; return OK; // shared memory a block, on request
    case 115: *value = 0; return OK;     // pools of memory
    }
    return complain(INVALID_VALUE, "attribute %d of a device is not known here", attribute);
}
API int cuGetErrorString(int code, const char **text) {
    *text = code == LAUNCH_FAILED ? "unspecified launch failure" : "an error of the stand-in";
    return OK;
}
API int cuGetErrorName(int, const char **text) { return *text = "CUDA_ERROR", OK; }

API int cuDevicePrimaryCtxRetain(void **context, int device) {
    BEGIN_ANYWHERE;
    *context = &cards[(size_t)device];
    return OK;
}
API int cuDevicePrimaryCtxRelease_v2(int) {
    BEGIN_ANYWHERE;
    return OK;
}
API int cuCtxSetCurrent(void *context) {
    BEGIN_ANYWHERE;
    has_context = context;
    return OK;
}
API int cuCtxGetCurrent(void **context) {
    BEGIN_ANYWHERE;
    *context = has_context ? &cards[0] : nullptr;
    return OK;
}
API int cuCtxSynchronize() {
    BEGIN;
    NOT_RECORDED;
    for (Stream *s : streams) drain(*s);
    return lost;
}

API int cuMemGetInfo_v2(size_t *free, size_t *all) {
    BEGIN;
    *all = total();
    *free = *all - used;
    return OK;
}
API int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    BEGIN;
    NOT_RECORDED;
    if (!bytes) return INVALID_VALUE;
    if (used + bytes > total()) return OUT_OF_MEMORY;
    void *block = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!block) return OUT_OF_MEMORY;
    memset(block, 0xff, bytes); // NaN
    *address = (uint64_t)block;
    memory[*address] = bytes;
    used += bytes;
    return OK;
}
// A driver waits here; this one does not, so that memory freed under queued work is an error.
API int cuMemFree_v2(uint64_t address) {
    BEGIN;
    NOT_RECORDED;
    auto block = memory.find(address);
    if (block == memory.end()) return complain(INVALID_VALUE, "freed what is not there");
    used -= block->second;
    memory.erase(block);
    free((void *)address);
    return OK;
}
API int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
    BEGIN;
    NOT_RECORDED;
    *pointer = malloc(bytes);
    memset(*pointer, 0xff, bytes);
    pinned[(uint64_t)*pointer] = bytes;
    return OK;
}
API int cuMemFreeHost(void *pointer) {
    BEGIN;
    if (!pinned.erase((uint64_t)pointer)) return complain(INVALID_VALUE, "freed what is not pinned");
    free(pointer);
    return OK;
}

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, Stream *s) {
    BEGIN;
    counts["bytes sent"] += bytes;
    auto copy = [=](const void *source) {
        if (!inside(memory, to, bytes)) return complain(ILLEGAL_ADDRESS, "a copy to what is not live memory");
        memcpy((void *)to, source, bytes);
        return OK;
    };
    if (inside(pinned, (uint64_t)from, bytes))
        return add(s, [=] {
            if (!inside(pinned, (uint64_t)from, bytes)) return complain(ILLEGAL_ADDRESS, "a copy from freed memory");
            return copy(from);
        });
    NOT_RECORDED;
    // What is not pinned has been read when the call returns.
    auto staged = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
    return add(s, [=] { return copy(staged->data()); });
}
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, Stream *s) {
    BEGIN;
    NOT_RECORDED;
    return add(s, [=] {
        if (!inside(memory, from, bytes)) return complain(ILLEGAL_ADDRESS, "a copy from what is not live memory");
        memcpy(to, (void *)from, bytes);
        return OK;
    });
}
API int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Stream *s) {
    BEGIN;
    return add(s, [=] {
        if (!inside(memory, to, bytes)) return complain(ILLEGAL_ADDRESS, "a memset of what is not live memory");
        memset((void *)to, value, bytes);
        return OK;
    });
}

API int cuStreamCreate(Stream **s, unsigned) {
    BEGIN;
    NOT_RECORDED;
    streams.push_back(*s = new Stream());
    return OK;
}
API int cuStreamDestroy_v2(Stream *s) {
    BEGIN;
    drain(*s);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s) streams.erase(streams.begin() + (long)i--);
    delete s;
    return lost;
}
API int cuStreamSynchronize(Stream *s) {
    BEGIN;
    NOT_RECORDED;
    return drain(*s);
}
API int cuStreamBeginCapture_v2(Stream *s, int) {
    BEGIN;
    if (s->record) return complain(INVALID_VALUE, "a stream is recorded twice");
    s->record.reset(new Graph());
    return OK;
}
API int cuStreamEndCapture(Stream *s, Graph **graph) {
    BEGIN;
    if (!s->record) return complain(INVALID_VALUE, "a stream was not recorded");
    *graph = s->record.release();
    return OK;
}
API int cuGraphInstantiateWithFlags(Graph **ready, Graph *graph, unsigned long long) {
    BEGIN;
    *ready = new Graph(*graph);
    return OK;
}
API int cuGraphLaunch(Graph *graph, Stream *s) {
    BEGIN;
    for (const Work &work : *graph) add(s, work);
    return OK;
}
API int cuGraphExecDestroy(Graph *graph) {
    BEGIN;
    delete graph;
    return OK;
}
API int cuGraphDestroy(Graph *graph) {
    BEGIN;
    delete graph;
    return OK;
}

API int cuEventCreate(Event **event, unsigned) {
    BEGIN;
    *event = new Event();
    return OK;
}
API int cuEventDestroy_v2(Event *event) {
    BEGIN;
    for (Stream *s : streams) drain(*s); // queued records name it
    delete event;
    return lost;
}
API int cuEventRecord(Event *event, Stream *s) {
    BEGIN;
    event->recorded++;
    return add(s, [=] {
        event->done++;
        event->when = std::chrono::steady_clock::now();
        return OK;
    });
}
API int cuEventQuery(Event *event) {
    BEGIN;
    NOT_RECORDED;
    // Sometimes the card has done something in the meantime.
    for (Stream *s : streams)
        for (uint64_t n = draw() % 8; n > 4 && !s->queue.empty(); n--)
            if (run_one(*s)) return lost;
    return event->done == event->recorded ? OK : NOT_READY;
}
API int cuEventSynchronize(Event *event) {
    BEGIN;
    NOT_RECORDED;
    for (Stream *s : streams)
        while (event->done != event->recorded && !s->queue.empty())
            if (run_one(*s)) return lost;
    return OK;
}
API int cuEventElapsedTime_v2(float *ms, Event *start, Event *end) {
    BEGIN;
    if (start->done != start->recorded || end->done != end->recorded) return NOT_READY;
    *ms = std::chrono::duration<float, std::milli>(end->when - start->when).count();
    return OK;
}

// ---- modules and kernels

API int cuModuleLoadData(const char **module, const char *image) {
    BEGIN;
    if (memcmp(image, "\177ELF", 4)) return complain(INVALID_IMAGE, "not a CUBIN");
    *module = image;
    return OK;
}
API int cuModuleUnload(const char *) {
    BEGIN;
    return OK;
}
API int cuModuleGetFunction(Function **function, const char *, const char *name) {
    BEGIN;
    NOT_RECORDED; // it would load the kernel
    auto found = functions.find(name);
    if (found == functions.end()) return NOT_FOUND;
    *function = &found->second;
    return OK;
}
API int cuFuncGetAttribute(int *value, int attribute, Function *function) {
    BEGIN;
    if (attribute != 8) return complain(INVALID_VALUE, "attribute %d of a kernel is not known here", attribute);
    *value = (int)function->shared;
    return OK;
}
API int cuFuncSetAttribute(Function *function, int attribute, int value) {
    BEGIN;
    if (attribute != 8 || value < 0 || (unsigned)value + STATIC_SHARED > SHARED) return INVALID_VALUE;
    function->shared = (unsigned)value;
    return OK;
}
API int cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, Stream *s, void **values, void **) {
    BEGIN;
    if (!gx || !gy || gy > 65535 || gz != 1 || by != 1 || bz != 1 || bx > 1024 || shared > function->shared)
        return complain(INVALID_VALUE, "%s: a card refuses this launch", function->kernel->name);
    std::vector<uint64_t> args;
    for (const char *kind = function->kernel->kinds; *kind; kind++, values++) {
        uint64_t value = 0;
        memcpy(&value, *values, *kind == 'p' || *kind == 'l' ? 8 : 4);
        args.push_back(value);
    }
    return add(s, kernel_work(function->kernel, gx, gy, bx, shared, args));
}

// ---- cuBLAS

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
    return OK;
}
API int cublasSetStream_v2(Blas *blas, Stream *s) {
    BEGIN_BLAS;
    *blas = {s, 0};
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
