// A driver library without a device: libcuda.so.1 as far as ffi/cuda calls it. Work is done when it is asked for.
//
// Buffers end where the memory of the process does, so that a kernel that reads or writes beyond one ends it.
#include "cuda.h"

#include <functional>
#include <map>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>

void (*find_kernel(const char *name))(void **);
const void *find_launch(const char *name, size_t *bytes);

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };

using Address = unsigned long long;
using Handle = void *;

// Buffers: where each begins, and the mapping that it is in.
std::map<Address, std::pair<void *, size_t>> buffers;

// Work of a stream that is being recorded.
using Work = std::vector<std::function<void()>>;
std::unique_ptr<Work> recorded;

int dummy;
Handle some_handle() { return &dummy; }

Result now_or_recorded(std::function<void()> work) {
    if (recorded) {
        recorded->push_back(std::move(work));
    } else {
        work();
    }
    return SUCCESS;
}

} // namespace

extern "C" {

Result cuInit(unsigned) { return SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int) { return *device = 0, SUCCESS; }
Result cuDeviceGetName(char *name, int length, int) { return snprintf(name, length, "emulation"), SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int) {
    // Processors, cache, compute capability; no to everything else.
    *value = attribute == 16 ? 1 : attribute == 38 ? 1 << 20 : attribute == 75 ? 8 : attribute == 76 ? 7 : 0;
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(Handle *context, int) { return *context = some_handle(), SUCCESS; }
Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
Result cuCtxSetCurrent(Handle) { return SUCCESS; }
Result cuCtxGetCurrent(Handle *context) { return *context = some_handle(), SUCCESS; }
Result cuCtxSynchronize() { return SUCCESS; }
Result cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = *total = size_t(1) << 30, SUCCESS; }

Result cuGetErrorName(int, const char **text) { return *text = "an error of the emulation", SUCCESS; }
Result cuGetErrorString(int, const char **text) { return *text = "an error of the emulation", SUCCESS; }

Result cuStreamCreate(Handle *stream, unsigned) { return *stream = some_handle(), SUCCESS; }
Result cuStreamDestroy_v2(Handle) { return SUCCESS; }
Result cuStreamSynchronize(Handle) { return SUCCESS; }
Result cuStreamWaitEvent(Handle, Handle, unsigned) { return SUCCESS; }
Result cuEventCreate(Handle *event, unsigned) { return *event = some_handle(), SUCCESS; }
Result cuEventDestroy_v2(Handle) { return SUCCESS; }
Result cuEventRecord(Handle, Handle) { return SUCCESS; }
Result cuEventSynchronize(Handle) { return SUCCESS; }
Result cuEventElapsedTime(float *milliseconds, Handle, Handle) { return *milliseconds = 1.0f, SUCCESS; }
Result cuEventElapsedTime_v2(float *milliseconds, Handle, Handle) { return *milliseconds = 1.0f, SUCCESS; }

Result cuModuleLoadData(Handle *module, const void *image) {
    return *module = some_handle(), image ? SUCCESS : INVALID_VALUE;
}
Result cuModuleUnload(Handle) { return SUCCESS; }
Result cuModuleGetFunction(Handle *function, Handle, const char *name) {
    *function = reinterpret_cast<Handle>(find_kernel(name));
    return *function ? SUCCESS : NOT_FOUND;
}
Result cuModuleGetGlobal_v2(Address *address, size_t *bytes, Handle, const char *name) {
    *address = reinterpret_cast<Address>(find_launch(name, bytes));
    return *address ? SUCCESS : NOT_FOUND;
}
Result cuFuncSetAttribute(Handle, int, int) { return SUCCESS; }
Result cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, Handle, int, size_t, unsigned) { return *blocks = 2, SUCCESS; }
Result cuFuncGetAttribute(int *value, int, Handle) { return *value = 0, SUCCESS; }

Result cuMemAlloc_v2(Address *address, size_t bytes) {
    size_t page = sysconf(_SC_PAGESIZE), rounded = (bytes + 15) / 16 * 16, pages = (rounded + page - 1) / page + 1;
    void *mapping = mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return OUT_OF_MEMORY;
    char *end = static_cast<char *>(mapping) + (pages - 1) * page;
    mprotect(end, page, PROT_NONE);
    *address = reinterpret_cast<Address>(end - rounded);
    memset(end - rounded, 0xcd, rounded);
    buffers[*address] = {mapping, pages * page};
    return SUCCESS;
}
Result cuMemFree_v2(Address address) {
    auto found = buffers.find(address);
    if (found == buffers.end()) return INVALID_VALUE;
    munmap(found->second.first, found->second.second);
    buffers.erase(found);
    return SUCCESS;
}
Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Handle) {
    return now_or_recorded([=] { memset(reinterpret_cast<void *>(to), value, bytes); });
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Handle) {
    return memcpy(reinterpret_cast<void *>(to), from, bytes), SUCCESS;
}
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Handle) {
    return memcpy(to, reinterpret_cast<void *>(from), bytes), SUCCESS;
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Handle) {
    return now_or_recorded(
        [=] { memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes); });
}

Result cuLaunchKernel(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                      unsigned block_y, unsigned block_z, unsigned shared_bytes, Handle, void **arguments, void **) {
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if (block_x * block_y * block_z > 1024 || shared_bytes > (163u << 10)) return INVALID_VALUE;
    if (recorded) {
        // Nobody says how many arguments there are: recording would need them kept.
        return INVALID_VALUE;
    }
    emulation::launch({grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes,
                      reinterpret_cast<void (*)(void **)>(function), arguments);
    return SUCCESS;
}

} // extern "C"
