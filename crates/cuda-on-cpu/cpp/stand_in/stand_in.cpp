// A driver of CUDA, a cuBLAS and an NCCL that run on the CPU, for tests: the functions that `src/backend/cuda` calls, with the
// kernels of the emulation. It is as lazy as the documentation allows: work runs when something waits for it, and
// memory is read and written then. So a wait that is missing, memory that is freed or written too early, and a call
// that a recorded stream must not see give an error or wrong results here.
//
// STAND_IN_KERNELS    shared objects, separated by colons: the emulation itself, then the kernels
// STAND_IN_CARD       names of cards and their compute capabilities: "Name=9.0;Other=7.0"; empty for none
// STAND_IN_SERVES     newest CUDA that the driver serves, as it counts: 13000
// STAND_IN_MEMORY     bytes of a card's memory
// STAND_IN_LOST       the kernel, counted from 1, at which the card is lost
// STAND_IN_SEED       draws an order in which streams do their work at every call, as far as events allow; without it, or
//                     with 0, work is done when something waits for it
// STAND_IN_COPY       ticks that a copy takes beside the kernels (state.h has the model of time): 90
// STAND_IN_DEFECT     a defect, to see that it is found: "kernels do not wait", "copies do not wait" (for an event of the
//                     other), "the host does not wait" (for an event of a copy), "copies come in turn" (in the model of time)
// STAND_IN_COUNTS     a file for the numbers of calls, written at the end
// nccl.h has those of NCCL.
#include "cublas.h"
#include "nccl.h"
#include "state.h"

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
    chance += strtoull(setting("STAND_IN_SEED", "0"), nullptr, 10);
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
    if (Result refused = break_records()) return refused;
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
    if (!s->computes) {
        counts["bytes sent beside kernels"] += bytes;
        takes(s, strtoull(setting("STAND_IN_COPY", "90"), nullptr, 10));
    }
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
    streams.erase(std::remove(streams.begin(), streams.end(), s), streams.end());
    delete s;
    return lost;
}
API int cuStreamSynchronize(Stream *s) {
    BEGIN;
    NOT_RECORDED;
    host_waits_until(s->tick);
    return drain(*s);
}
API int cuStreamWaitEvent(Stream *s, Event *event, unsigned) {
    BEGIN;
    if (s->record) return complain(CAPTURE_UNSUPPORTED, "a recorded stream waits for an event");
    if (!event->recorded) return OK;
    if (has_defect(s->computes ? "kernels do not wait" : "copies do not wait")) return OK;
    s->tick = std::max(s->tick, event->tick);
    s->queue.push_back({nullptr, event, event->recorded});
    wander();
    return OK;
}
API int cuStreamBeginCapture_v2(Stream *s, int) {
    BEGIN;
    if (s->record) return complain(INVALID_VALUE, "a stream is recorded twice");
    s->record.reset(new Graph());
    s->recorder = std::this_thread::get_id();
    s->broken = false;
    return OK;
}
API int cuStreamEndCapture(Stream *s, Graph **graph) {
    BEGIN;
    if (!s->record) return complain(INVALID_VALUE, "a stream was not recorded");
    *graph = s->record.release();
    if (!s->broken) return OK;
    delete *graph;
    *graph = nullptr;
    return CAPTURE_INVALIDATED;
}
API int cuGraphInstantiateWithFlags(Graph **ready, Graph *graph, unsigned long long) {
    BEGIN;
    *ready = new Graph(*graph);
    return OK;
}
API int cuGraphLaunch(Graph *graph, Stream *s) {
    BEGIN;
    takes(s, 100);
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
    event->on = s;
    event->tick = s->tick;
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
    bool drawn = wander();
    for (Stream *s : streams)
        for (uint64_t n = drawn ? 0 : draw() % 8; n > 4 && !s->queue.empty(); n--)
            if (run_one(*s)) return lost;
    return event->done == event->recorded ? OK : NOT_READY;
}
API int cuEventSynchronize(Event *event) {
    BEGIN;
    NOT_RECORDED;
    if (!event->recorded || (has_defect("the host does not wait") && !event->on->computes)) return OK;
    host_waits_until(event->tick);
    while (event->done != event->recorded)
        if (run_one(*event->on)) return lost;
    return OK;
}
// Drivers before CUDA 12.8 have no cuEventElapsedTime_v2, and this one has none either.
API int cuEventElapsedTime(float *ms, Event *start, Event *end) {
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
    // What it was given, or what any block has unasked: the kernel's static shared memory is not counted.
    *value = (int)(function->asked ? function->shared : SHARED_UNASKED);
    return OK;
}
API int cuFuncSetAttribute(Function *function, int attribute, int value) {
    BEGIN;
    if (attribute != 8 || value < 0 || (unsigned)value + STATIC_SHARED > SHARED) return INVALID_VALUE;
    function->shared = (unsigned)value;
    function->asked = true;
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
