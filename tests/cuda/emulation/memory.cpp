// Memory of the device and pinned memory of the host.
//
// Invariant: no two buffers ever had the same address; what is read or written behind a buffer, or in one that is free,
// ends the program at once, and what is written before one ends it when that is freed, or at the end.
#include "driver.h"

#include <algorithm>
#include <map>
#include <memory>
#include <sys/mman.h>
#include <unistd.h>

namespace driver {
namespace {

// NaN in every floating format, and an index of nothing.
constexpr int POISON = 0xff;
constexpr int GUARD = 0xa5;

struct Buffer {
    char *mapping;
    size_t mapped, bytes;
    bool pinned;
    // Whether its end was asked for: the bytes can be had by others, who come after it on the stream.
    bool given_back;
};

// Never destroyed: threads may use them to the very end.
auto &buffers = *new std::map<Address, Buffer>;
auto &freed = *new std::map<Address, Buffer>;
// Host memory of the program's own that was made known, and constants of modules.
auto &registered = *new std::map<Address, size_t>;
auto &constants = *new std::map<Address, size_t>;
size_t used;
// For ANDON_EMULATED_CRAMPED: how often memory was given since it was refused, and is given before it is again.
size_t given, allowed;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

size_t rounded(size_t bytes) { return (bytes + 15) / 16 * 16; }

// Its memory can be read and written from now on.
void begin(Address address) {
    auto found = buffers.find(address);
    if (found == buffers.end()) return;
    const Buffer &buffer = found->second;
    mprotect(buffer.mapping + page(), buffer.mapped - 2 * page(), PROT_READ | PROT_WRITE);
    memset(buffer.mapping + page(), GUARD, buffer.mapped - 2 * page());
    memset(reinterpret_cast<void *>(address), POISON, buffer.bytes);
}

// The buffer ends where the memory of the process does, to 16 bytes.
bool take(Address *address, size_t bytes, bool pinned) {
    size_t inner = (rounded(bytes) + page() - 1) / page() * page(), mapped = inner + 2 * page();
    void *mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return false;
    char *end = static_cast<char *>(mapping) + page() + inner;
    *address = reinterpret_cast<Address>(end - rounded(bytes));
    buffers[*address] = {static_cast<char *>(mapping), mapped, bytes, pinned, false};
    return true;
}

// Whether nothing was written beside it.
bool intact(Address address, const Buffer &buffer) {
    const char *start = buffer.mapping + page(), *at = reinterpret_cast<const char *>(address);
    for (const char *byte = start; byte < at; byte++) {
        if (static_cast<unsigned char>(*byte) != GUARD) return false;
    }
    for (const char *byte = at + buffer.bytes; byte < at + rounded(buffer.bytes); byte++) {
        if (static_cast<unsigned char>(*byte) != GUARD) return false;
    }
    return true;
}

// The end of a buffer: the address is kept, so that whoever uses it is found.
Result end(Address address) {
    auto found = buffers.find(address);
    if (found == buffers.end()) return INVALID_VALUE;
    const Buffer buffer = found->second;
    if (!intact(address, buffer)) {
        fprintf(stderr, "emulation: something was written beside a buffer of %zu bytes\n", buffer.bytes);
        abort();
    }
    if (!buffer.pinned && !buffer.given_back) used -= buffer.bytes;
    buffers.erase(found);
    constexpr size_t KEPT = 4096;
    if (freed.size() >= KEPT) {
        const Buffer &oldest = freed.begin()->second;
        munmap(oldest.mapping, oldest.mapped);
        freed.erase(freed.begin());
    }
    madvise(buffer.mapping, buffer.mapped, MADV_DONTNEED);
    mprotect(buffer.mapping, buffer.mapped, PROT_NONE);
    freed[address] = buffer;
    return SUCCESS;
}

const std::pair<const Address, Buffer> *around(Address address) {
    auto next = buffers.upper_bound(address);
    if (next == buffers.begin()) return nullptr;
    const auto &before = *--next;
    return address < before.first + before.second.bytes ? &before : nullptr;
}

// Bytes that are copied, or nothing where they are no buffer's.
void copy(Address to, Address from, size_t bytes) {
    memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes);
}

bool checked(Address address, size_t bytes, const char *what) {
    if (has(address, bytes)) return true;
    illegal("%s %zu bytes at %#llx, which no buffer has", what, bytes, address);
    return false;
}

Result taken(Address *address, size_t bytes) {
    if (bytes == 0) return INVALID_VALUE;
    if (bytes > memory_bytes() || used > memory_bytes() - bytes) return OUT_OF_MEMORY;
    if (setting("ANDON_EMULATED_CRAMPED", 0) != 0 && given++ == allowed) {
        given = 0;
        allowed++;
        return OUT_OF_MEMORY;
    }
    if (!take(address, bytes, false)) return OUT_OF_MEMORY;
    used += bytes;
    return SUCCESS;
}

} // namespace

size_t memory_bytes() { return setting("ANDON_EMULATED_MEMORY", 1ull << 30); }

size_t memory_used() { return used; }

void know(Address address, size_t bytes) { constants[address] = bytes; }

bool has(Address address, size_t bytes) {
    const auto *buffer = around(address);
    if (buffer != nullptr) return bytes <= buffer->first + buffer->second.bytes - address;
    auto constant = constants.find(address);
    if (constant != constants.end()) return bytes <= constant->second;
    return is_pinned(reinterpret_cast<const void *>(address), bytes);
}

bool is_pinned(const void *address, size_t bytes) {
    const auto at = reinterpret_cast<Address>(address);
    const auto *buffer = around(at);
    if (buffer != nullptr && buffer->second.pinned) return has(at, bytes);
    auto next = registered.upper_bound(at);
    if (next == registered.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

Address end_of(Address address) {
    const auto *buffer = around(address);
    return buffer == nullptr ? address : buffer->first + buffer->second.bytes;
}

void describe(Address address) {
    for (const auto *map : {&buffers, &freed}) {
        for (const auto &[start, buffer] : *map) {
            const auto mapping = reinterpret_cast<Address>(buffer.mapping);
            if (address < mapping || address >= mapping + buffer.mapped) continue;
            fprintf(stderr, "emulation: %s used byte %lld of a buffer of %zu bytes%s\n",
                    running == nullptr ? "a copy" : running, static_cast<long long>(address - start), buffer.bytes,
                    map == &freed ? " that was freed" : address < start + buffer.bytes ? " before it was taken" : "");
            return;
        }
    }
    fprintf(stderr, "emulation: %s used an address of no buffer\n", running == nullptr ? "a copy" : running);
}

void check_guards() {
    for (const auto &[address, buffer] : buffers) {
        // Those that nothing was asked of yet cannot be read.
        unsigned char resident;
        if (mincore(buffer.mapping + page(), page(), &resident) != 0 || !(resident & 1)) continue;
        if (intact(address, buffer)) continue;
        fprintf(stderr, "emulation: something was written beside a buffer of %zu bytes\n", buffer.bytes);
        abort();
    }
}

} // namespace driver

using namespace driver;

extern "C" {

Result cuMemGetInfo_v2(size_t *free, size_t *total) {
    LOCKED_AND_WHOLE;
    *total = memory_bytes();
    *free = *total - std::min(*total, used);
    return SUCCESS;
}

Result cuMemAlloc_v2(Address *address, size_t bytes) {
    LOCKED;
    if (Result refused = not_recording()) return refused;
    if (Result refused = taken(address, bytes)) return refused;
    begin(*address);
    return SUCCESS;
}
// Waits for everything, as real drivers do.
Result cuMemFree_v2(Address address) {
    LOCKED;
    if (broken == SUCCESS) {
        if (Result refused = not_recording()) return refused;
    }
    run_all();
    if (Result wrong = end(address)) return wrong;
    return broken;
}
// There is nothing to be read before the stream has come to it.
Result cuMemAllocAsync(Address *address, size_t bytes, Handle stream) {
    LOCKED_AND_WHOLE;
    if (Result refused = taken(address, bytes)) return refused;
    return ask(stream, [taken = *address] { begin(taken); });
}
Result cuMemAllocFromPoolAsync(Address *address, size_t bytes, Handle, Handle stream) {
    return cuMemAllocAsync(address, bytes, stream);
}
Result cuMemFreeAsync(Address address, Handle stream) {
    LOCKED_AND_WHOLE;
    auto found = buffers.find(address);
    if (found == buffers.end() || found->second.given_back || found->second.pinned) return INVALID_VALUE;
    if (!is_recording(stream)) {
        // What is taken later comes after it.
        used -= found->second.bytes;
        found->second.given_back = true;
    }
    return ask(stream, [=] { end(address); });
}
Result cuDeviceGetDefaultMemPool(Handle *pool, int) { return *pool = &buffers, SUCCESS; }
Result cuDeviceGetMemPool(Handle *pool, int) { return *pool = &buffers, SUCCESS; }
Result cuMemPoolSetAttribute(Handle, int, void *) { return SUCCESS; }
Result cuMemPoolTrimTo(Handle, size_t) { return SUCCESS; }

Result cuMemHostAlloc(void **address, size_t bytes, unsigned) {
    LOCKED;
    if (Result refused = not_recording()) return refused;
    Address at;
    if (bytes == 0 || !take(&at, bytes, true)) return bytes == 0 ? INVALID_VALUE : OUT_OF_MEMORY;
    begin(at);
    return *address = reinterpret_cast<void *>(at), SUCCESS;
}
Result cuMemAllocHost_v2(void **address, size_t bytes) { return cuMemHostAlloc(address, bytes, 0); }
Result cuMemFreeHost(void *address) {
    LOCKED;
    return end(reinterpret_cast<Address>(address));
}
Result cuMemHostRegister_v2(void *address, size_t bytes, unsigned) {
    LOCKED;
    if (Result refused = not_recording()) return refused;
    return registered[reinterpret_cast<Address>(address)] = bytes, SUCCESS;
}
Result cuMemHostUnregister(void *address) {
    LOCKED;
    return registered.erase(reinterpret_cast<Address>(address)) == 1 ? SUCCESS : INVALID_VALUE;
}
// Addresses are the same on both.
Result cuMemHostGetDevicePointer_v2(Address *device, void *address, unsigned) {
    LOCKED_AND_WHOLE;
    if (!is_pinned(address, 1)) return INVALID_VALUE;
    return *device = reinterpret_cast<Address>(address), SUCCESS;
}

Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Handle stream) {
    LOCKED;
    return ask(stream, [=] {
        if (checked(to, bytes, "filled")) memset(reinterpret_cast<void *>(to), value, bytes);
    });
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Handle stream) {
    LOCKED;
    return ask(stream, [=] {
        if (checked(to, bytes, "copied to") && checked(from, bytes, "copied from")) copy(to, from, bytes);
    });
}
// Pinned memory is read when the copy is made; other memory is copied at once to a place of the driver's.
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Handle stream) {
    LOCKED_AND_WHOLE;
    const auto host = reinterpret_cast<Address>(from);
    if (is_pinned(from, bytes)) {
        return ask(stream, [=] {
            if (!is_pinned(from, bytes)) return illegal("a copy from %zu bytes of host memory that was freed", bytes);
            if (checked(to, bytes, "copied to")) copy(to, host, bytes);
        });
    }
    if (Result refused = not_recorded(stream)) return refused;
    const char *source = static_cast<const char *>(from);
    auto staged = std::make_shared<std::vector<char>>(source, source + bytes);
    return ask(stream, [=] {
        if (checked(to, bytes, "copied to")) copy(to, reinterpret_cast<Address>(staged->data()), bytes);
    });
}
// Pinned memory is written when the copy is made; with other memory that is waited for.
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Handle stream) {
    LOCKED_AND_WHOLE;
    const auto host = reinterpret_cast<Address>(to);
    if (is_pinned(to, bytes)) {
        return ask(stream, [=] {
            if (!is_pinned(to, bytes)) return illegal("a copy to %zu bytes of host memory that was freed", bytes);
            if (checked(from, bytes, "copied from")) copy(host, from, bytes);
        });
    }
    if (Result refused = not_recorded(stream)) return refused;
    static unsigned long long reads;
    if (bytes >= 256 && reads++ >= setting("ANDON_EMULATED_READS", ~0ull)) return broken = ILLEGAL_ADDRESS;
    if (Result refused = ask(stream, [=] {
            if (checked(from, bytes, "copied from")) copy(host, from, bytes);
        })) {
        return refused;
    }
    run_all(stream);
    return broken;
}
Result cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) {
    LOCKED;
    if (Result refused = cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr)) return refused;
    run_all(nullptr);
    return broken;
}
Result cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) {
    LOCKED;
    if (Result refused = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr)) return refused;
    run_all(nullptr);
    return broken;
}

} // extern "C"
