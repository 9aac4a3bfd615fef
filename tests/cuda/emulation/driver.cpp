// A driver library without a device: libcuda.so.1 as far as ffi/cuda calls it. Work is done when it is asked for.
//
// Buffers end where the memory of the process does, so that a kernel that reads or writes beyond one ends it. Faults are
// asked for by the environment:
//
// - ANDON_EMULATED_DEVICES: how many devices there are (1).
// - ANDON_EMULATED_CAPABILITY: compute capability, as 87 (8.7) or 90.
// - ANDON_EMULATED_MEMORY: bytes that the device has (2^30).
// - ANDON_EMULATED_SHARED_MEMORY: bytes of shared memory that a block may have (163 KB).
// - ANDON_EMULATED_IMAGE_ERROR: what loading kernels ends with (0, that they are loaded).
// - ANDON_EMULATED_INTEGRATED: 1 where that is the machine's memory, as on Jetson (0).
// - ANDON_EMULATED_LAUNCHES: launches that work; from then on every call gets ANDON_EMULATED_ERROR (700, an illegal
//   address), as a context gets that a device has failed in.
#include "kernels.h"

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    NOT_FOUND = 500,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
};

using Address = unsigned long long;
using Handle = void *;

// No real driver has this version: by it ffi/cuda knows that the kernels are here and not in modules.
constexpr int VERSION = 1;

unsigned long long setting(const char *name, unsigned long long otherwise) {
    const char *text = getenv(name);
    return text == nullptr ? otherwise : strtoull(text, nullptr, 10);
}

// Held by every call: as with a real driver, threads may call at once.
std::recursive_mutex lock;

struct Buffer {
    void *mapping;
    size_t mapped, bytes;
};

std::map<Address, Buffer> buffers;
size_t used;

// Work of the stream, where it is being recorded.
using Work = std::vector<std::function<void()>>;
std::unique_ptr<Work> recorded;
bool spoilt; // something was asked for meanwhile that cannot be recorded

unsigned long long launches;
// Dynamic shared memory of a block that a kernel was allowed.
std::map<Handle, unsigned> shared_allowed;
Result broken = SUCCESS;

int dummy;
Handle some_handle() { return &dummy; }

Result now_or_recorded(std::function<void()> work) {
    if (broken != SUCCESS) return broken;
    if (recorded) {
        recorded->push_back(std::move(work));
    } else {
        // What goes wrong on a device is told to the next call.
        work();
    }
    return SUCCESS;
}

// What cannot be done while launches are recorded.
Result not_recorded() {
    if (broken != SUCCESS) return broken;
    if (!recorded) return SUCCESS;
    spoilt = true;
    return CAPTURE_UNSUPPORTED;
}

// Shared memory that a block may have, where its kernel asked for it.
unsigned shared_memory_max() { return static_cast<unsigned>(setting("ANDON_EMULATED_SHARED_MEMORY", 163u << 10)); }

size_t memory() { return setting("ANDON_EMULATED_MEMORY", 1ull << 30); }

} // namespace

#define LOCKED const std::lock_guard<std::recursive_mutex> locked(lock)
#define LOCKED_AND_WHOLE                                                                                               \
    LOCKED;                                                                                                            \
    if (broken != SUCCESS) return broken

extern "C" {

Result cuInit(unsigned) { return setting("ANDON_EMULATED_DEVICES", 1) == 0 ? NO_DEVICE : SUCCESS; }
Result cuDriverGetVersion(int *version) { return *version = VERSION, SUCCESS; }
Result cuDeviceGetCount(int *count) {
    return *count = static_cast<int>(setting("ANDON_EMULATED_DEVICES", 1)), SUCCESS;
}
Result cuDeviceGet(int *device, int ordinal) {
    if (ordinal < 0 || static_cast<unsigned>(ordinal) >= setting("ANDON_EMULATED_DEVICES", 1)) return INVALID_DEVICE;
    return *device = ordinal, SUCCESS;
}
Result cuDeviceGetName(char *name, int length, int) { return snprintf(name, length, "emulation"), SUCCESS; }
Result cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = memory(), SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int) {
    const int capability = static_cast<int>(setting("ANDON_EMULATED_CAPABILITY", 87));
    switch (attribute) {
    case 16: *value = 1; break;                 // processors
    case 18: *value = static_cast<int>(setting("ANDON_EMULATED_INTEGRATED", 0)); break;
    case 38: *value = 1 << 20; break;           // cache
    case 75: *value = capability / 10; break;   // compute capability
    case 76: *value = capability % 10; break;
    case 97: *value = static_cast<int>(shared_memory_max()); break;
    default: *value = 0; break;
    }
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(Handle *context, int) { return *context = some_handle(), SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Result cuCtxSetCurrent(Handle) { return SUCCESS; }
Result cuCtxGetCurrent(Handle *context) { return *context = some_handle(), SUCCESS; }
Result cuCtxSynchronize() {
    LOCKED;
    return not_recorded();
}
Result cuMemGetInfo_v2(size_t *free, size_t *total) {
    LOCKED_AND_WHOLE;
    *total = memory();
    *free = *total - std::min(*total, used);
    return SUCCESS;
}

Result cuGetErrorName(int, const char **text) { return *text = "an error of the emulation", SUCCESS; }
Result cuGetErrorString(int, const char **text) { return *text = "an error of the emulation", SUCCESS; }

Result cuStreamCreate(Handle *stream, unsigned) {
    LOCKED_AND_WHOLE;
    return *stream = some_handle(), SUCCESS;
}
Result cuStreamDestroy_v2(Handle) { return SUCCESS; }
Result cuStreamSynchronize(Handle) {
    LOCKED;
    return not_recorded();
}
Result cuStreamWaitEvent(Handle, Handle, unsigned) { return SUCCESS; }
Result cuEventCreate(Handle *event, unsigned) {
    LOCKED_AND_WHOLE;
    return *event = some_handle(), SUCCESS;
}
Result cuEventDestroy_v2(Handle) { return SUCCESS; }
Result cuEventRecord(Handle, Handle) {
    LOCKED_AND_WHOLE;
    return SUCCESS;
}
Result cuEventSynchronize(Handle) {
    LOCKED;
    return not_recorded();
}
Result cuEventElapsedTime(float *milliseconds, Handle, Handle) { return *milliseconds = 1.0f, SUCCESS; }
Result cuEventElapsedTime_v2(float *milliseconds, Handle, Handle) { return *milliseconds = 1.0f, SUCCESS; }

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
    const std::string end = "_launch";
    std::string kernel = name;
    if (kernel.size() < end.size() || kernel.compare(kernel.size() - end.size(), end.size(), end) != 0) return NOT_FOUND;
    kernel.resize(kernel.size() - end.size());
    const Kernel *found = find_kernel(kernel.c_str());
    if (found == nullptr || found->launch == nullptr) return NOT_FOUND;
    *address = reinterpret_cast<Address>(found->launch);
    *bytes = found->launch_bytes;
    return SUCCESS;
}
Result cuFuncSetAttribute(Handle function, int attribute, int value) {
    LOCKED_AND_WHOLE;
    if (attribute == 8 && static_cast<unsigned>(value) > shared_memory_max()) return INVALID_VALUE;
    if (attribute == 8) shared_allowed[function] = static_cast<unsigned>(value);
    return SUCCESS;
}
Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, Handle, int, size_t, unsigned) {
    return *blocks = 2, SUCCESS;
}
Result cuFuncGetAttribute(int *value, int, Handle) { return *value = 0, SUCCESS; }

Result cuMemAlloc_v2(Address *address, size_t bytes) {
    LOCKED;
    if (Result refused = not_recorded()) return refused;
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > memory() || used > memory() - bytes) return OUT_OF_MEMORY;
    size_t page = sysconf(_SC_PAGESIZE), rounded = (bytes + 15) / 16 * 16, pages = (rounded + page - 1) / page + 1;
    void *mapping = mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return OUT_OF_MEMORY;
    char *end = static_cast<char *>(mapping) + (pages - 1) * page;
    mprotect(end, page, PROT_NONE);
    *address = reinterpret_cast<Address>(end - rounded);
    memset(end - rounded, 0xcd, rounded);
    buffers[*address] = {mapping, pages * page, bytes};
    used += bytes;
    return SUCCESS;
}
Result cuMemFree_v2(Address address) {
    LOCKED;
    auto found = buffers.find(address);
    if (found == buffers.end()) return INVALID_VALUE;
    munmap(found->second.mapping, found->second.mapped);
    used -= found->second.bytes;
    buffers.erase(found);
    return broken;
}
Result cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    LOCKED;
    if (Result refused = not_recorded()) return refused;
    return (*address = malloc(bytes)) != nullptr ? SUCCESS : OUT_OF_MEMORY;
}
Result cuMemFreeHost(void *address) { return free(address), SUCCESS; }
Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Handle) {
    LOCKED;
    return now_or_recorded([=] { memset(reinterpret_cast<void *>(to), value, bytes); });
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Handle) {
    LOCKED;
    if (Result refused = not_recorded()) return refused;
    return memcpy(reinterpret_cast<void *>(to), from, bytes), SUCCESS;
}
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Handle) {
    LOCKED;
    if (Result refused = not_recorded()) return refused;
    return memcpy(to, reinterpret_cast<void *>(from), bytes), SUCCESS;
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Handle) {
    LOCKED;
    return now_or_recorded(
        [=] { memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes); });
}

Result cuLaunchKernel(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, Handle, void **arguments, void **) {
    LOCKED_AND_WHOLE;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if (block_x * block_y * block_z > 1024 || shared_bytes > shared_memory_max()) return INVALID_VALUE;
    // 48 KB without asking, of which what the kernel declares itself takes some.
    if (shared_bytes > (48u << 10) - 16 && shared_bytes > shared_allowed[function]) return INVALID_VALUE;
    auto kernel = static_cast<const Kernel *>(function);
    auto kept = std::make_shared<Arguments>(kernel->keep(arguments));
    return now_or_recorded([=] {
        if (broken == SUCCESS && launches++ >= setting("ANDON_EMULATED_LAUNCHES", ~0ull)) {
            broken = static_cast<Result>(setting("ANDON_EMULATED_ERROR", 700));
        }
        if (broken != SUCCESS) return;
        std::vector<void *> pointers;
        for (std::vector<char> &argument : *kept) pointers.push_back(argument.data());
        emulation::launch({grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, kernel->entry,
                          pointers.data());
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

Result cuStreamIsCapturing(Handle, int *status) {
    LOCKED_AND_WHOLE;
    return *status = recorded ? (spoilt ? 2 : 1) : 0, SUCCESS;
}
Result cuStreamBeginCapture_v2(Handle, int) {
    LOCKED;
    if (Result refused = not_recorded()) return refused;
    recorded = std::make_unique<Work>();
    spoilt = false;
    return SUCCESS;
}
Result cuStreamEndCapture(Handle, Handle *graph) {
    LOCKED_AND_WHOLE;
    *graph = nullptr;
    if (!recorded) return CAPTURE_UNMATCHED;
    std::unique_ptr<Work> work = std::move(recorded);
    if (spoilt) return CAPTURE_INVALIDATED;
    *graph = new Work(std::move(*work));
    return SUCCESS;
}
Result cuGraphInstantiateWithFlags(Handle *executable, Handle graph, unsigned long long) {
    LOCKED_AND_WHOLE;
    *executable = new Work(*static_cast<Work *>(graph));
    return SUCCESS;
}
Result cuGraphLaunch(Handle executable, Handle) {
    LOCKED;
    if (Result refused = not_recorded()) return refused;
    for (const auto &work : *static_cast<Work *>(executable)) work();
    return SUCCESS;
}
Result cuGraphUpload(Handle, Handle) {
    LOCKED;
    return not_recorded();
}
Result cuGraphExecDestroy(Handle executable) { return delete static_cast<Work *>(executable), SUCCESS; }
Result cuGraphDestroy(Handle graph) { return delete static_cast<Work *>(graph), SUCCESS; }

} // extern "C"
