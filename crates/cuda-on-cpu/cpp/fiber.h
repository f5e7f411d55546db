// Stacks, and switching between them. swapcontext makes system calls, so x86-64 has a switch of its own.
#pragma once
#include <stddef.h>
#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif
#ifdef EMULATOR_SANITIZED
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

#ifdef EMULATOR_SANITIZED
const size_t STACK = 256 << 10; // the sanitizer writes its report on the stack of the fiber
#else
const size_t STACK = 64 << 10;
#endif
const size_t GUARD = 4096;

#ifndef EMULATOR_UCONTEXT
typedef void *Context;
extern "C" void emulator_switch(void **save, void *to) __attribute__((visibility("hidden")));
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size emulator_switch, . - emulator_switch
)");
void swap(Context &from, Context &to) { emulator_switch(&from, to); }
void prepare(Context &context, unsigned char *, unsigned char *top, void (*entry)()) {
    void **frame = reinterpret_cast<void **>(top) - 8;
    for (int i = 0; i < 8; i++) frame[i] = nullptr;
    frame[6] = reinterpret_cast<void *>(entry); // six registers lie below; a null return address above
    context = frame;
}
#else
typedef ucontext_t Context;
void swap(Context &from, Context &to) { swapcontext(&from, &to); }
void prepare(Context &context, unsigned char *bottom, unsigned char *top, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = bottom;
    context.uc_stack.ss_size = (size_t)(top - bottom);
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

struct Stack {
    unsigned char *bottom;
    size_t size;
};

void switch_stacks(Context &from, Context &to, Stack stack) {
#ifdef EMULATOR_SANITIZED
    void *fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack.bottom, stack.size);
    swap(from, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void)stack;
    swap(from, to);
#endif
}

} // namespace
} // namespace emulator
