// Threads of a block as fibers: each runs until it waits for others, and then the next that can go on does.
//
// Invariant: one block runs at a time, on the thread that launched it; the driver's lock sees to that.
#include "cuda.h"

#include <csetjmp>
#include <sys/mman.h>
#include <ucontext.h>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t SHARED_BYTES_MAX = 228 << 10;
constexpr int THREADS_MAX = 1024, BARRIERS = 16, EXCHANGE_BYTES = 64;

struct Copy {
    void *to;
    const void *from;
    size_t bytes;
};

struct Meeting {
    int arrived = 0;
    uint64_t generation = 0;
};

struct Fiber {
    jmp_buf context;
    void *stack = nullptr;
    dim3 index;
    bool done;
    // What it waits for, as long as that has this generation.
    const Meeting *meeting;
    uint64_t generation;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> pending;
};

Fiber fibers[THREADS_MAX];
Meeting warps[THREADS_MAX / LANES], barriers[BARRIERS];
alignas(16) char exchanges[THREADS_MAX / LANES][LANES * EXCHANGE_BYTES];
alignas(128) uint8_t shared_bytes[SHARED_BYTES_MAX];
size_t shared_used;
jmp_buf scheduler;
ucontext_t starting;
int current, running;
void (*kernel_now)(void **);
void **arguments_now;

void to_scheduler() {
    // Without the mask of signals, which would take a call of the system for each turn.
    if (_setjmp(fibers[current].context) == 0) _longjmp(scheduler, 1);
}

// A fiber's life: one thread of a block after the other.
void live() {
    for (;;) {
        kernel_now(arguments_now);
        fibers[current].done = true;
        running--;
        to_scheduler();
    }
}

// Makes a fiber that has come as far as its first turn.
void make(Fiber &fiber) {
    void *stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) abort();
    fiber.stack = stack;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, +[] {
        if (_setjmp(fibers[current].context) == 0) setcontext(&starting);
        live();
    }, 0);
    volatile bool made = false;
    getcontext(&starting);
    if (!made) {
        made = true;
        setcontext(&context);
    }
}

void meet(Meeting &meeting, int count, bool stay) {
    uint64_t generation = meeting.generation;
    if (++meeting.arrived == count) {
        meeting.arrived = 0;
        meeting.generation++;
        return;
    }
    if (!stay) return;
    fibers[current].meeting = &meeting;
    fibers[current].generation = generation;
    to_scheduler();
}

void run_block(int threads) {
    memset(shared_bytes, 0xcd, shared_used);
    for (Meeting &meeting : warps) meeting = Meeting();
    for (Meeting &meeting : barriers) meeting = Meeting();
    for (int i = 0; i < threads; i++) {
        Fiber &fiber = fibers[i];
        current = i;
        if (fiber.stack == nullptr) make(fiber);
        fiber.done = false;
        fiber.meeting = nullptr;
        fiber.open.clear();
        fiber.pending.clear();
        fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    }
    running = threads;
    while (running > 0) {
        bool progress = false;
        for (int i = 0; i < threads; i++) {
            Fiber &fiber = fibers[i];
            if (fiber.done || (fiber.meeting != nullptr && fiber.meeting->generation == fiber.generation)) continue;
            fiber.meeting = nullptr;
            progress = true;
            current = i;
            threadIdx = fiber.index;
            if (_setjmp(scheduler) == 0) _longjmp(fiber.context, 1);
        }
        if (!progress) {
            fprintf(stderr, "emulation: %d threads of a block wait for others that never come\n", running);
            abort();
        }
    }
    for (Meeting &barrier : barriers) {
        if (barrier.arrived != 0) {
            fprintf(stderr, "emulation: a barrier was left with %d threads arrived\n", barrier.arrived);
            abort();
        }
    }
}

} // namespace

void meet_warp() { meet(warps[current / LANES], LANES, true); }

void *exchange(size_t bytes_of_a_lane) {
    if (bytes_of_a_lane > EXCHANGE_BYTES) abort();
    return exchanges[current / LANES];
}

int lane() { return current % LANES; }

void meet_block() { meet(barriers[0], static_cast<int>(blockDim.x * blockDim.y * blockDim.z), true); }

void arrive(int barrier, int threads) { meet(barriers[barrier], threads, false); }

void wait(int barrier, int threads) { meet(barriers[barrier], threads, true); }

void copy(void *to, const void *from, size_t bytes) {
    auto at = static_cast<uint8_t *>(to) - shared_bytes;
    if (at < 0 || at + bytes > shared_used || reinterpret_cast<uintptr_t>(to) % bytes != 0 ||
        reinterpret_cast<uintptr_t>(from) % bytes != 0) {
        fprintf(stderr, "emulation: a copy to %td of %zu bytes of shared memory, or not aligned\n", at, shared_used);
        abort();
    }
    fibers[current].open.push_back({to, from, bytes});
}

void commit() {
    Fiber &fiber = fibers[current];
    fiber.pending.push_back(std::move(fiber.open));
    fiber.open.clear();
}

void wait_copies(int pending) {
    Fiber &fiber = fibers[current];
    while (fiber.pending.size() > static_cast<size_t>(pending)) {
        for (const Copy &copy : fiber.pending.front()) memcpy(copy.to, copy.from, copy.bytes);
        fiber.pending.pop_front();
    }
}

uint8_t *shared() { return shared_bytes; }

void launch(dim3 grid, dim3 block, size_t bytes, void (*kernel)(void **), void **arguments) {
    int threads = static_cast<int>(block.x * block.y * block.z);
    if (threads > THREADS_MAX || threads % LANES != 0 || bytes > SHARED_BYTES_MAX) abort();
    kernel_now = kernel;
    arguments_now = arguments;
    shared_used = bytes;
    blockDim = block;
    gridDim = grid;
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                run_block(threads);
            }
        }
    }
}

} // namespace emulation
