// Threads of a block as fibers.
#include "cuda.h"

#include <ucontext.h>

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

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

struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    dim3 index;
    bool done;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> pending;
};

struct Meeting {
    int arrived = 0;
    uint64_t generation = 0;
};

Fiber fibers[THREADS_MAX];
Meeting warps[THREADS_MAX / LANES], barriers[BARRIERS];
alignas(16) char exchanges[THREADS_MAX / LANES][LANES * EXCHANGE_BYTES];
alignas(128) uint8_t shared_bytes[SHARED_BYTES_MAX];
size_t shared_used;
ucontext_t scheduler;
int current, running;
uint64_t progress;
void (*kernel_now)(void **);
void **arguments_now;

void enter() {
    kernel_now(arguments_now);
    fibers[current].done = true;
    running--;
    progress++;
    swapcontext(&fibers[current].context, &scheduler);
}

void meet(Meeting &meeting, int count, bool stay, void (*work)(void *) = nullptr, void *argument = nullptr) {
    uint64_t generation = meeting.generation;
    progress++;
    if (++meeting.arrived == count) {
        if (work) work(argument);
        meeting.arrived = 0;
        meeting.generation++;
        return;
    }
    while (stay && meeting.generation == generation) yield();
}

void run_block(int threads) {
    memset(shared_bytes, 0xcd, sizeof shared_bytes);
    for (Meeting &meeting : warps) meeting = Meeting();
    for (Meeting &meeting : barriers) meeting = Meeting();
    for (int i = 0; i < threads; i++) {
        Fiber &fiber = fibers[i];
        fiber.done = false;
        fiber.open.clear();
        fiber.pending.clear();
        fiber.stack.resize(STACK_BYTES);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
        makecontext(&fiber.context, enter, 0);
    }
    running = threads;
    while (running > 0) {
        uint64_t before = progress;
        for (int i = 0; i < threads; i++) {
            if (fibers[i].done) continue;
            current = i;
            threadIdx = fibers[i].index;
            swapcontext(&scheduler, &fibers[i].context);
        }
        if (progress == before) {
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

void yield() { swapcontext(&fibers[current].context, &scheduler); }

void meet_warp(void (*work)(void *), void *argument) { meet(warps[current / LANES], LANES, true, work, argument); }

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
