// A driver library without a device: libcuda.so.1 as far as ffi/cuda calls it.
//
// Work is queued as on a device and done as late as one might do it: what is not waited for is not there. Faults are asked
// for by the environment:
//
// - ANDON_EMULATED_DEVICES: how many devices there are (1).
// - ANDON_EMULATED_CAPABILITY: compute capability, as 87 (8.7) or 90.
// - ANDON_EMULATED_MEMORY: bytes that the device has (2^30).
// - ANDON_EMULATED_CRAMPED: 1 to refuse memory: the first time that it is asked for, then the second, then the third, each
//   counted from the one that was refused before. So whoever tries again and again comes one step further each time.
// - ANDON_EMULATED_PACK_MS: how long it takes to ask for packing, in milliseconds (0).
// - ANDON_EMULATED_SHARED_MEMORY: bytes of shared memory that a block may have (what there is of that capability).
// - ANDON_EMULATED_IMAGE_ERROR: what loading kernels ends with (0, that they are loaded).
// - ANDON_EMULATED_INTEGRATED: 1 where that is the machine's memory, as on Jetson (0).
// - ANDON_EMULATED_POOLS: 1 where memory is taken and freed in the order of a stream, as on cards (the opposite of the
//   above).
// - ANDON_EMULATED_QUEUE: how much a stream is asked for before it has to do some (1024); with 0 all is done at once.
// - ANDON_EMULATED_LAUNCHES: launches that work; from then on every call gets ANDON_EMULATED_ERROR (700, an illegal
//   address), as a context gets that a device has failed in.
// - ANDON_EMULATED_READS: copies of 256 bytes and more to memory that is not pinned that work; from then on every call fails.
// - ANDON_EMULATED_GRAPHS: 0 where launches cannot be recorded (1).
// - ANDON_EMULATED_GRAPHS_REFUSED: what there is no memory for: to "instantiate", "upload" or "launch" graphs (nothing).
// - ANDON_EMULATED_WAITS: a file that gets a line for each wait, of how much was done in it.
// - ANDON_EMULATED_WRONG: a kernel, of whose results one bit is wrong, in every launch.
#include "driver.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdarg>
#include <map>
#include <memory>
#include <string>
#include <thread>

namespace driver {

std::recursive_mutex lock;
Result broken = SUCCESS;
const char *running;

unsigned long long setting(const char *name, unsigned long long otherwise) {
    const char *text = getenv(name);
    return text == nullptr ? otherwise : strtoull(text, nullptr, 10);
}

void illegal(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("emulation: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    if (broken == SUCCESS) broken = ILLEGAL_ADDRESS;
}

} // namespace driver

using namespace driver;

namespace {

// No real driver has this version: by it ffi/cuda knows that the kernels are here and not in modules.
constexpr int VERSION = 1;

int dummy;
Handle some_handle() { return &dummy; }

unsigned long long launches;
// Dynamic shared memory of a block that a kernel was allowed.
auto &shared_allowed = *new std::map<Handle, unsigned>;

// Shared memory that a block may have, where its kernel asked for it.
unsigned shared_memory_max() {
    unsigned kilobytes;
    switch (setting("ANDON_EMULATED_CAPABILITY", 87)) {
    case 86:
    case 89:
    case 120:
    case 121: kilobytes = 99; break;
    case 90:
    case 100: kilobytes = 227; break;
    default: kilobytes = 163; break;
    }
    return static_cast<unsigned>(setting("ANDON_EMULATED_SHARED_MEMORY", kilobytes << 10));
}

struct sigaction before;

// Says which kernel used what, and leaves the rest to who handled faults before.
void fault(int, siginfo_t *info, void *) {
    if (running != nullptr) describe(reinterpret_cast<Address>(info->si_addr));
    sigaction(SIGSEGV, &before, nullptr);
}

// Changes one bit of what the kernel wrote: a high one of the first word that differs from before, in any buffer of its
// arguments.
struct Wrong {
    std::vector<std::pair<Address, std::vector<char>>> kept;

    explicit Wrong(const Arguments &arguments) {
        for (const std::vector<char> &argument : arguments) {
            if (argument.size() != sizeof(Address)) continue;
            Address address;
            memcpy(&address, argument.data(), sizeof address);
            const char *from = reinterpret_cast<const char *>(address);
            const size_t bytes = end_of(address) - address;
            if (bytes > 0) kept.emplace_back(address, std::vector<char>(from, from + bytes));
        }
    }

    void make() const {
        for (const auto &[address, bytes] : kept) {
            char *now = reinterpret_cast<char *>(address);
            for (size_t i = 0; i < bytes.size(); i++) {
                if (now[i] == bytes[i]) continue;
                now[std::min(i | 3, bytes.size() - 1)] ^= 0x40;
                return;
            }
        }
    }
};

} // namespace

extern "C" {

Result cuInit(unsigned) {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before);
        atexit([] {
            LOCKED;
            check_guards();
        });
    });
    return setting("ANDON_EMULATED_DEVICES", 1) == 0 ? NO_DEVICE : SUCCESS;
}
Result cuDriverGetVersion(int *version) { return *version = VERSION, SUCCESS; }
Result cuDeviceGetCount(int *count) {
    return *count = static_cast<int>(setting("ANDON_EMULATED_DEVICES", 1)), SUCCESS;
}
Result cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || static_cast<unsigned>(ordinal) >= setting("ANDON_EMULATED_DEVICES", 1)) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
Result cuDeviceGetName(char *name, int length, int) { return snprintf(name, length, "emulation"), SUCCESS; }
Result cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = memory_bytes(), SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int) {
    const int capability = static_cast<int>(setting("ANDON_EMULATED_CAPABILITY", 87));
    const int integrated = static_cast<int>(setting("ANDON_EMULATED_INTEGRATED", 0));
    switch (attribute) {
    case 8: *value = 48 << 10; break;           // shared memory of a block
    case 16: *value = 1; break;                 // processors
    case 18: *value = integrated; break;
    case 19: *value = 1; break;                 // reads pinned memory
    case 38: *value = 1 << 20; break;           // cache
    case 41: *value = 1; break;                 // addresses are the host's
    case 75: *value = capability / 10; break;   // compute capability
    case 76: *value = capability % 10; break;
    case 97: *value = static_cast<int>(shared_memory_max()); break;
    case 99: *value = 1; break;                 // host memory can be registered
    case 115: *value = static_cast<int>(setting("ANDON_EMULATED_POOLS", !integrated)); break;
    default: *value = 0; break;
    }
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(Handle *context, int) { return *context = some_handle(), SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Result cuCtxSetCurrent(Handle) { return SUCCESS; }
Result cuCtxGetCurrent(Handle *context) { return *context = some_handle(), SUCCESS; }

Result cuGetErrorName(int, const char **text) { return *text = "an error of the emulation", SUCCESS; }
Result cuGetErrorString(int, const char **text) { return *text = "an error of the emulation", SUCCESS; }

Result cuModuleLoadData(Handle *module, const void *image) {
    LOCKED_AND_WHOLE;
    if (unsigned long long refused = setting("ANDON_EMULATED_IMAGE_ERROR", 0)) return static_cast<Result>(refused);
    return *module = some_handle(), image ? SUCCESS : INVALID_VALUE;
}
Result cuModuleUnload(Handle) { return SUCCESS; }
Result cuModuleGetFunction(Handle *function, Handle, const char *name) {
    *function = const_cast<Kernel *>(find_kernel(name));
    return *function ? SUCCESS : NOT_FOUND;
}
Result cuModuleGetGlobal_v2(Address *address, size_t *bytes, Handle, const char *name) {
    LOCKED_AND_WHOLE;
    const std::string end = "_launch";
    std::string kernel = name;
    if (kernel.size() < end.size() || kernel.compare(kernel.size() - end.size(), end.size(), end) != 0) return NOT_FOUND;
    kernel.resize(kernel.size() - end.size());
    const Kernel *found = find_kernel(kernel.c_str());
    if (found == nullptr || found->launch == nullptr) return NOT_FOUND;
    *address = reinterpret_cast<Address>(found->launch);
    *bytes = found->launch_bytes;
    know(*address, *bytes);
    return SUCCESS;
}
Result cuFuncSetAttribute(Handle function, int attribute, int value) {
    LOCKED_AND_WHOLE;
    if (attribute != 8) return SUCCESS;
    if (static_cast<unsigned>(value) > shared_memory_max()) return INVALID_VALUE;
    return shared_allowed[function] = static_cast<unsigned>(value), SUCCESS;
}
// Of 16 warps, so that blocks of few and of many are launched.
Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, Handle, int threads, size_t, unsigned) {
    return *blocks = 512 / threads, SUCCESS;
}
Result cuFuncGetAttribute(int *value, int, Handle) { return *value = 0, SUCCESS; }

Result cuLaunchKernel(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, Handle stream, void **arguments,
                      void **) {
    if (std::string(static_cast<const Kernel *>(function)->name).find("_pack") != std::string::npos) {
        std::this_thread::sleep_for(std::chrono::milliseconds(setting("ANDON_EMULATED_PACK_MS", 0)));
    }
    LOCKED_AND_WHOLE;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if (block_x * block_y * block_z > 1024 || shared_bytes > shared_memory_max()) return INVALID_VALUE;
    // 48 KB without asking, of which what the kernel declares itself takes some.
    if (shared_bytes > (48u << 10) - 16 && shared_bytes > shared_allowed[function]) return INVALID_VALUE;
    auto kernel = static_cast<const Kernel *>(function);
    auto kept = std::make_shared<Arguments>(kernel->keep(arguments));
    return ask(stream, [=] {
        if (launches++ >= setting("ANDON_EMULATED_LAUNCHES", ~0ull)) {
            broken = static_cast<Result>(setting("ANDON_EMULATED_ERROR", ILLEGAL_ADDRESS));
            return;
        }
        std::vector<void *> pointers;
        for (std::vector<char> &argument : *kept) pointers.push_back(argument.data());
        const char *wrong = getenv("ANDON_EMULATED_WRONG");
        const auto compared =
            std::make_unique<Wrong>(wrong != nullptr && strcmp(wrong, kernel->name) == 0 ? *kept : Arguments());
        running = kernel->name;
        emulation::launch({grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, kernel->entry,
                          pointers.data());
        running = nullptr;
        compared->make();
    });
}

struct LaunchConfig {
    unsigned grid[3], block[3], shared_bytes;
    Handle stream;
    void *attributes;
    unsigned attribute_count;
};

Result cuLaunchKernelEx(const LaunchConfig *config, Handle function, void **arguments, void **more) {
    return cuLaunchKernel(function, config->grid[0], config->grid[1], config->grid[2], config->block[0],
                          config->block[1], config->block[2], config->shared_bytes, config->stream, arguments, more);
}

} // extern "C"
