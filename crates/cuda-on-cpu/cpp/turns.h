// Whose turn it is: the state of the running block, and what happens when no lane of a warp can go on by itself.
#pragma once
#include "emulator.h"
#include "fiber.h"

#include <stdarg.h>
#include <stdio.h>
#include <vector>

namespace emulator {
namespace {

const unsigned LANES = 32, MOST_THREADS = 1024;

struct Warp;
struct Fiber : Thread {
    Warp *warp;
    Context context;
    unsigned lane, bit; // bit = 1 << lane
    unsigned stack;     // which of the machine's
    bool started;
};

// A lane's call of a warp primitive; lies on the lane's own stack.
struct Call {
    Kind kind;
    unsigned mask, source;
    uint64_t value, result;
    Site site;
};

struct Warp {
    unsigned pending; // lanes that have a turn left
    unsigned waiting; // lanes at a warp primitive
    unsigned blocked; // lanes at the block's barrier
    unsigned done;    // lanes that returned
    unsigned cursor, factor, shift, flip; // turn i is of lane ((factor i + shift) % 32) ^ flip
    Fiber *fibers;
    Call *calls[LANES]; // of the lanes that wait
};

struct Machine {
    Grid grid;
    Fiber fibers[MOST_THREADS];
    Warp warps[MOST_THREADS / LANES];
    unsigned n_warps;
    unsigned ready[MOST_THREADS / LANES], n_ready, turn; // warps with turns left, and whose turn it is
    Site barrier;                                        // where the first thread of this phase waits
    unsigned holds, held; // threads whose predicate holds: so far, and at the last barrier
    Context main;
    Stack main_stack;
    unsigned char *stacks;
    std::vector<unsigned> free_stacks;
    unsigned n_stacks;
    std::vector<uint64_t> order; // of the blocks
    uint64_t random_state;
    const Kernel *kernel;
    const uint64_t *args;
    char *message;
    size_t message_size;
    bool failed;

    uint32_t random() { // splitmix64
        uint64_t z = random_state += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return (uint32_t)(z >> 32);
    }
    Stack stack(unsigned i) { return {stacks + i * (STACK + GUARD) + GUARD, STACK}; }
    unsigned take_stack();
    void deal(Warp &warp, unsigned lanes);
    Fiber *next();
    bool settle(Warp &warp);
    bool release_warp(Warp &warp);
    void refuse_warp(const Warp &warp);
    bool release_block();
    void combine(Warp &warp, unsigned mask);
    void leave(Fiber *self);
    void go(Context &from, Fiber *to);
    void back(Context &from);
    bool run_block(Index block);
    void refuse(unsigned thread, const char *format, ...) __attribute__((format(printf, 3, 4)));
    void refuse(unsigned thread, const char *format, va_list list);
};

__thread Machine *machine __attribute__((tls_model("initial-exec")));

Fiber *self() { return static_cast<Fiber *>(current); }

// The first error of a launch is the one that is told.
void Machine::refuse(unsigned thread, const char *format, va_list list) {
    if (failed) return;
    failed = true;
    int n = snprintf(message, message_size, "kernel %s, block (%u, %u), thread %u: ", kernel->name, grid.block.x,
                     grid.block.y, thread);
    if (n > 0 && (size_t)n < message_size) vsnprintf(message + n, message_size - (size_t)n, format, list);
}
void Machine::refuse(unsigned thread, const char *format, ...) {
    va_list list;
    va_start(list, format);
    refuse(thread, format, list);
    va_end(list);
}

// ---- turns

// Gives `lanes` a turn each, in a new order.
void Machine::deal(Warp &warp, unsigned lanes) {
    uint32_t r = random();
    warp.pending |= lanes;
    warp.cursor = 0;
    warp.factor = r << 1 | 1;
    warp.shift = r >> 8;
    warp.flip = r >> 16 & 31;
}

// Who runs next; null when all threads returned, or at an error.
inline Fiber *Machine::next() {
    for (;;) {
        Warp &warp = warps[ready[turn]];
        while (warp.pending) {
            unsigned lane = ((warp.cursor++ * warp.factor + warp.shift) & 31) ^ warp.flip;
            if (warp.pending >> lane & 1) {
                warp.pending ^= 1u << lane;
                return &warp.fibers[lane];
            }
        }
        if (!settle(warp)) return nullptr;
    }
}

// No lane of the warp can go on by itself: completes primitives, or leaves the warp at the barrier.
bool Machine::settle(Warp &warp) {
    if (warp.waiting) {
        if (!release_warp(warp)) return false;
        // Another warp sometimes comes between two primitives, as on a card.
        if (random() % 4 == 0) turn = random() % n_ready;
        return true;
    }
    ready[turn] = ready[--n_ready];
    if (n_ready == 0) return release_block();
    turn = random() % n_ready;
    return true;
}

bool Machine::release_warp(Warp &warp) {
    unsigned released = 0;
    for (unsigned left = warp.waiting; left;) {
        unsigned lane = (unsigned)__builtin_ctz(left);
        const Call &call = *warp.calls[lane];
        left &= left - 1;
        if (call.mask & ~warp.waiting) continue;
        bool same = true;
        for (unsigned others = call.mask; others; others &= others - 1) {
            unsigned o = (unsigned)__builtin_ctz(others);
            const Call &other = *warp.calls[o];
            same &= other.mask == call.mask;
            if (same && (other.site.line != call.site.line || other.kind != call.kind)) {
                refuse(warp.fibers[lane].index.x, "is at %s:%d, but thread %u is at %s:%d, with the same mask %08x of lanes",
                       call.site.file, call.site.line, warp.fibers[o].index.x, other.site.file, other.site.line, call.mask);
                return false;
            }
        }
        if (!same) continue;
        combine(warp, call.mask);
        if (failed) return false;
        left &= ~call.mask;
        released |= call.mask;
    }
    if (!released) {
        refuse_warp(warp);
        return false;
    }
    warp.waiting &= ~released;
    deal(warp, released);
    return true;
}

// Tells why no lane of the warp can go on.
void Machine::refuse_warp(const Warp &warp) {
    unsigned lane = (unsigned)__builtin_ctz(warp.waiting);
    const Call &call = *warp.calls[lane];
    unsigned missing = call.mask & ~warp.waiting, thread = warp.fibers[lane].index.x;
    if (!missing) {
        refuse(thread, "waits at %s:%d for lanes %08x, but some of them wait with other masks", call.site.file,
               call.site.line, call.mask);
        return;
    }
    unsigned absent = (unsigned)__builtin_ctz(missing);
    refuse(thread, "waits at %s:%d for lanes %08x, but thread %u %s", call.site.file, call.site.line, call.mask,
           warp.fibers[absent].index.x, warp.done >> absent & 1 ? "has returned" : "waits at __syncthreads");
}

// Works out what the primitive gives each lane of the mask.
void Machine::combine(Warp &warp, unsigned mask) {
    Kind kind = warp.calls[__builtin_ctz(mask)]->kind;
    uint64_t all = kind == AND ? 0xffffffffu : kind == MIN ? ~0ull : 0;
    for (unsigned left = mask; left; left &= left - 1) {
        unsigned lane = (unsigned)__builtin_ctz(left);
        Call &call = *warp.calls[lane];
        switch (kind) {
        case SHUFFLE:
            if (!(mask >> call.source & 1)) {
                refuse(warp.fibers[lane].index.x, "at %s:%d reads lane %u, which is not in the mask %08x",
                       call.site.file, call.site.line, call.source, mask);
                return;
            }
            call.result = warp.calls[call.source]->value;
            break;
        case MATCH:
            call.result = 0;
            for (unsigned o = 0; o < LANES; o++)
                if (mask >> o & 1 && warp.calls[o]->value == call.value) call.result |= 1u << o;
            break;
        case BALLOT: all |= (uint64_t)(call.value != 0) << lane; break;
        case ADD: all = (uint32_t)(all + call.value); break;
        case MIN: all = call.value < all ? call.value : all; break;
        case MAX: all = call.value > all ? call.value : all; break;
        case AND: all &= call.value; break;
        case OR: all |= call.value; break;
        case XOR: all ^= call.value; break;
        }
    }
    if (kind == SHUFFLE || kind == MATCH) return;
    for (unsigned left = mask; left; left &= left - 1) warp.calls[__builtin_ctz(left)]->result = all;
}

// All warps wait or returned: false if this was the end of the block.
bool Machine::release_block() {
    unsigned blocked = 0, done = 0, waits = 0, returned = 0;
    for (unsigned w = 0; w < n_warps; w++) {
        if (warps[w].blocked) blocked++, waits = w * LANES + (unsigned)__builtin_ctz(warps[w].blocked);
        if (warps[w].done) done++, returned = w * LANES + (unsigned)__builtin_ctz(warps[w].done);
    }
    if (!blocked) return false;
    if (done) {
        refuse(waits, "waits at __syncthreads (%s:%d), but thread %u has returned", barrier.file, barrier.line, returned);
        return false;
    }
    held = holds;
    holds = 0;
    barrier.line = 0;
    for (unsigned w = 0; w < n_warps; w++) {
        warps[w].blocked = 0;
        deal(warps[w], ~0u);
        ready[w] = w;
    }
    n_ready = n_warps;
    turn = random() % n_ready;
    return true;
}

} // namespace
} // namespace emulator
