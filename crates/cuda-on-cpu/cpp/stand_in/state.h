// What the driver and cuBLAS of the stand-in share: memory, streams with the work that they have not done yet, kernels,
// and what is checked at each call.
#pragma once
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
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

enum Result { // CUresult
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, NO_DEVICE = 100,
    INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600,
    ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

typedef std::function<Result()> Work;
typedef std::vector<Work> Graph;

struct Stream;
struct Event {
    uint64_t recorded = 0, done = 0; // how often
    std::chrono::steady_clock::time_point when;
    Stream *on = nullptr; // where it was recorded last
    uint64_t tick = 0;    // when it is over, by the model of time
};
struct Item {
    Work work;
    Event *event = nullptr; // what must be over before, and how often
    uint64_t times = 0;
};
struct Stream {
    std::deque<Item> queue;
    bool computes = false; // it has kernels; else there are copies alone
    uint64_t tick = 0;     // when all that was queued is over, by the model of time
    std::unique_ptr<Graph> record; // what is recorded; null where nothing is
    std::thread::id recorder;      // the thread that began the record
    bool broken = false;           // another thread synchronized the device meanwhile
};
struct Function {
    const emulator::Kernel *kernel;
    unsigned shared; // most dynamic shared memory, in bytes
    bool asked;      // it was asked for
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
uint64_t host_tick = 0; // the model of time: when the host makes the next call
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
        if (s->record && s->recorder == std::this_thread::get_id())
            return complain(CAPTURE_UNSUPPORTED, "%s while a stream is recorded", name);
    return OK;
}
// What synchronizes the whole device breaks every record under way, in whatever mode it was begun.
Result break_records() {
    Result result = OK;
    for (Stream *s : streams)
        if (s->record) s->broken = true, result = CAPTURE_UNSUPPORTED;
    return result;
}
#define NOT_RECORDED                                                                                                   \
    if (Result refused = outside_records(__func__)) return refused

bool has_defect(const char *name) { return !strcmp(setting("STAND_IN_DEFECT", ""), name); }

// Whether the stream waits for another.
bool is_held_up(const Stream &s) {
    const Item &next = s.queue.front();
    return next.event && next.event->done < next.times;
}
// Does what is next on a stream, after what that waits for.
Result run_one(Stream &s) {
    while (is_held_up(s) && !lost) {
        Stream *other = s.queue.front().event->on;
        if (other->queue.empty()) return lost = complain(LAUNCH_FAILED, "a stream waits for an event that never comes");
        run_one(*other);
    }
    if (lost) return lost;
    Item next = std::move(s.queue.front());
    s.queue.pop_front();
    Result result = next.work ? next.work() : OK;
    if (result && !lost) lost = result;
    return lost;
}
Result drain(Stream &s) {
    while (!s.queue.empty() && !lost) run_one(s);
    return lost;
}
// Draws what is done though nothing waits for it: with STAND_IN_SEED at each call. Of three seeds one prefers streams that
// compute, and one those that copy, so that the others are as late as can be.
bool wander() {
    static const uint64_t seed = strtoull(setting("STAND_IN_SEED", "0"), nullptr, 10);
    for (uint64_t n = seed && !streams.empty() ? draw() % 12 : 0; n && !lost; n--) {
        Stream *s = streams[draw() % streams.size()];
        if (seed % 3 != 0 && s->computes != (seed % 3 == 1)) continue;
        if (!s->queue.empty() && !is_held_up(*s)) run_one(*s);
    }
    return seed;
}
Result add(Stream *s, Work work) {
    if (s->record)
        s->record->push_back(std::move(work));
    else
        s->queue.push_back({std::move(work)});
    wander();
    return OK;
}

// The model of time: a graph takes 100 ticks and a copy on a stream that computes nothing STAND_IN_COPY, all else none.
// A stream begins with what is queued when it has done what was queued before, and not before the host has queued it.
void takes(Stream *s, uint64_t ticks) {
    uint64_t begins = std::max(s->tick, host_tick);
    if (has_defect("copies come in turn"))
        for (Stream *other : streams) begins = std::max(begins, other->tick);
    s->tick = begins + ticks;
}
void host_waits_until(uint64_t tick) { host_tick = std::max(host_tick, tick); }

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
        for (size_t i = 0; i < *count; i++) functions[table[i].name] = {&table[i], SHARED_UNASKED - STATIC_SHARED, false};
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
    counts["ticks"] = host_tick;
    for (auto &count : counts) fprintf(file, "%s\t%llu\n", count.first.c_str(), (unsigned long long)count.second);
    fclose(file);
}

// A kernel as it is launched: its arguments are copied.
Work kernel_work(const emulator::Kernel *kernel, unsigned gx, unsigned gy, unsigned block, unsigned shared,
                 std::vector<uint64_t> args) {
    return [=]() -> Result {
        if (++kernels_run == strtoull(setting("STAND_IN_LOST", "0"), nullptr, 10)) return LAUNCH_FAILED;
        for (size_t i = 0; i < args.size(); i++)
            if (kernel->kinds[i] == 'p' && args[i] && !inside(memory, args[i], 0))
                return complain(ILLEGAL_ADDRESS, "%s: argument %zu is not in live memory", kernel->name, i);
        char message[512] = "";
        int failed = launch_emulated(kernel, args.data(), gx, gy, 0, block, shared, kernels_run, message, sizeof message);
        return failed ? complain(LAUNCH_FAILED, "%s", message) : OK;
    };
}

} // namespace
