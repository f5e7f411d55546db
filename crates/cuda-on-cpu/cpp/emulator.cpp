// Runs a launch: a fiber for each CUDA thread of a block, blocks one after another, all turns drawn from a seed.
#include "emulator.h"
#include "turns.h"

#include <link.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <mutex>
#include <vector>

namespace emulator {
namespace {

// ---- fibers

unsigned Machine::take_stack() {
    if (free_stacks.empty()) {
        // The guard page below a stack makes an overflow a fault; without it the stack still serves.
        mprotect(stack(n_stacks).bottom - GUARD, GUARD, PROT_NONE);
        return n_stacks++;
    }
    unsigned i = free_stacks.back();
    free_stacks.pop_back();
    return i;
}

// What runs on every stack: a thread from its start to its end, and then any other that has not started.
void fiber_main() {
    Machine &m = *machine;
#ifdef EMULATOR_SANITIZED
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!m.main_stack.bottom) m.main_stack = {(unsigned char *)bottom, size}; // the first fiber is entered from there
#endif
    for (;;) {
        m.kernel->call(m.kernel->body, m.args);
        Fiber *me = self();
        me->warp->done |= me->bit;
        Fiber *to = m.next();
        if (to && !to->started) {
            to->started = true;
            to->stack = me->stack;
            current = to;
            continue;
        }
        m.free_stacks.push_back(me->stack); // reused once this stack has been left
        if (!to) m.back(me->context);
        m.go(me->context, to);
    }
}

void Machine::go(Context &from, Fiber *to) {
    current = to;
    if (!to->started) {
        to->started = true;
        to->stack = take_stack();
        Stack s = stack(to->stack);
        // Tops at different places in their pages, or all fibers would share a few cache lines.
        prepare(to->context, s.bottom, s.bottom + s.size - to->stack % 32 * 128, fiber_main);
    }
    switch_stacks(from, to->context, stack(to->stack));
}

void Machine::back(Context &from) { switch_stacks(from, main, main_stack); }

void Machine::leave(Fiber *me) {
    Fiber *to = failed ? nullptr : next();
    if (to == me) return;
    if (!to) back(me->context); // an error: this fiber never runs again
    go(me->context, to);
}

bool Machine::run_block(Index block) {
    grid.block = block;
    barrier.line = 0;
    holds = 0;
    for (unsigned w = 0; w < n_warps; w++) {
        Warp &warp = warps[w];
        warp.pending = warp.waiting = warp.blocked = warp.done = 0;
        deal(warp, ~0u);
        ready[w] = w;
        for (unsigned lane = 0; lane < LANES; lane++) fibers[w * LANES + lane].started = false;
    }
    n_ready = n_warps;
    turn = random() % n_ready;
    go(main, next());
    return !failed;
}

// ---- launches

// The thread-local storage of a shared object: its __shared__ variables.
struct Shared {
    uintptr_t inside; // an address in the object
    void *data;
    size_t size;
};
extern "C" void *__tls_get_addr(size_t *);
int find_shared(dl_phdr_info *info, size_t, void *data) {
    Shared &shared = *static_cast<Shared *>(data);
    bool found = false;
    size_t size = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto &part = info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + part.p_vaddr;
        found |= part.p_type == PT_LOAD && shared.inside >= start && shared.inside < start + part.p_memsz;
        if (part.p_type == PT_TLS) size = part.p_memsz;
    }
    if (found && size) {
        size_t place[2] = {info->dlpi_tls_modid, 0};
        shared.data = __tls_get_addr(place);
        shared.size = size;
    }
    return found;
}

// NaN as float32, float64 and bfloat16.
void fill(void *data, size_t size) {
    static const unsigned char pattern[2] = {0xf5, 0xff};
    unsigned char *bytes = static_cast<unsigned char *>(data);
    size_t n = size < 2 ? size : 2;
    memcpy(bytes, pattern, n);
    for (; n < size; n += n < size - n ? n : size - n) memcpy(bytes + n, bytes, n < size - n ? n : size - n);
}

std::mutex spare_lock;
std::vector<Machine *> spare; // machines keep their stacks from launch to launch

Machine *take_machine() {
    std::lock_guard<std::mutex> hold(spare_lock);
    if (!spare.empty()) {
        Machine *m = spare.back();
        spare.pop_back();
        return m;
    }
    void *stacks = mmap(nullptr, MOST_THREADS * (STACK + GUARD), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) return nullptr;
    Machine *m = new Machine();
    m->stacks = static_cast<unsigned char *>(stacks);
    for (unsigned i = 0; i < MOST_THREADS; i++) {
        Fiber &fiber = m->fibers[i];
        fiber.index = {i, 0, 0};
        fiber.grid = &m->grid;
        fiber.lane = i % LANES;
        fiber.bit = 1u << fiber.lane;
        fiber.warp = &m->warps[i / LANES];
        fiber.warp->fibers = &m->fibers[i / LANES * LANES];
    }
    return m;
}

// Blocks below `first_x` are left out.
void run(Machine &m, const Shared &shared, size_t dynamic, unsigned first_x) {
    uint64_t blocks = (uint64_t)m.grid.grid_dim.x * m.grid.grid_dim.y;
    m.order.resize(blocks);
    for (uint64_t i = 0; i < blocks; i++) { // Fisher-Yates, inside out
        uint64_t j = m.random() % (i + 1);
        m.order[i] = m.order[j];
        m.order[j] = i;
    }
    for (uint64_t b : m.order) {
        if (b % m.grid.grid_dim.x < first_x) continue;
        if (shared.size) fill(shared.data, shared.size);
        if (dynamic) fill(m.grid.dynamic, dynamic);
        if (!m.run_block({(unsigned)(b % m.grid.grid_dim.x), (unsigned)(b / m.grid.grid_dim.x), 0})) break;
    }
}

} // namespace

__thread Thread *current __attribute__((tls_model("initial-exec")));

unsigned barrier(bool predicate, Site site) {
    Machine &m = *machine;
    Fiber *me = self();
    if (m.barrier.line && m.barrier.line != site.line)
        m.refuse(me->index.x, "waits at __syncthreads (%s:%d), but another thread waits at %s:%d", site.file, site.line,
                 m.barrier.file, m.barrier.line);
    m.barrier = site;
    m.holds += predicate;
    me->warp->blocked |= me->bit;
    m.leave(me);
    return m.held;
}

uint64_t collective(Kind kind, unsigned mask, uint64_t value, unsigned source, Site site) {
    Machine &m = *machine;
    Fiber *me = self();
    Call call = {kind, mask, source & 31, value, 0, site};
    if (!(mask & me->bit))
        m.refuse(me->index.x, "at %s:%d is not in its own mask %08x of lanes", site.file, site.line, mask);
    me->warp->calls[me->lane] = &call;
    me->warp->waiting |= me->bit;
    m.leave(me);
    return call.result;
}

void fail(const char *format, ...) {
    va_list list;
    va_start(list, format);
    machine->refuse(current->index.x, format, list);
    va_end(list);
    machine->leave(self());
}

// Runs a launch to its end: 0, or 1 and a message.
extern "C" __attribute__((visibility("default"))) int emulator_launch(const Kernel *kernel, const uint64_t *args,
                                                                      unsigned grid_x, unsigned grid_y, unsigned first_x,
                                                                      unsigned block, unsigned dynamic, uint64_t seed,
                                                                      char *message, size_t message_size) {
    if (block == 0 || block % LANES || block > MOST_THREADS || grid_x == 0 || grid_y == 0 || grid_y > 65535) {
        snprintf(message, message_size, "kernel %s: a card refuses a grid of (%u, %u) blocks of %u threads", kernel->name,
                 grid_x, grid_y, block);
        return 1;
    }
    if (block > kernel->most) {
        snprintf(message, message_size, "kernel %s: a card refuses %u threads, above its launch bounds of %u", kernel->name,
                 block, (unsigned)kernel->most);
        return 1;
    }
    Machine *m = take_machine();
    if (!m) {
        snprintf(message, message_size, "kernel %s: no memory for the stacks of the emulation", kernel->name);
        return 1;
    }
    Shared shared = {reinterpret_cast<uintptr_t>(kernel->body), nullptr, 0};
    dl_iterate_phdr(find_shared, &shared);
    m->grid = {{0, 0, 0}, {block, 1, 1}, {grid_x, grid_y, 1}, static_cast<unsigned char *>(malloc(dynamic))};
    m->kernel = kernel;
    m->args = args;
    m->message = message;
    m->message_size = message_size;
    m->failed = false;
    m->random_state = seed;
    m->n_warps = block / LANES;
    m->main_stack = {nullptr, 0};
    machine = m;
    run(*m, shared, dynamic, first_x);
    free(m->grid.dynamic);
    bool failed = m->failed;
#ifdef EMULATOR_SANITIZED
    // Threads that an error left in the middle leave the marks of their frames.
    for (unsigned i = 0; failed && i < m->n_stacks; i++) __asan_unpoison_memory_region(m->stack(i).bottom, STACK);
#endif
    m->free_stacks.clear();
    for (unsigned i = m->n_stacks; i > 0; i--) m->free_stacks.push_back(i - 1);
    std::lock_guard<std::mutex> hold(spare_lock);
    spare.push_back(m);
    return failed;
}

} // namespace emulator
