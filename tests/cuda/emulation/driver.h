// What the parts of the driver share.
//
// Invariant: all of it is used under `lock`, which every call that does anything takes.
#pragma once

#include "kernels.h"

#include <functional>
#include <mutex>

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    NOT_SUPPORTED = 801,
    ILLEGAL_ADDRESS = 700,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_ISOLATION = 905,
    CAPTURED_EVENT = 907,
};

using Address = unsigned long long;
using Handle = void *;
using Work = std::function<void()>;

#define LOCKED const std::lock_guard<std::recursive_mutex> locked(driver::lock)
#define LOCKED_AND_WHOLE                                                                                               \
    LOCKED;                                                                                                            \
    if (driver::broken != SUCCESS) return driver::broken

namespace driver {

// Held by every call: as with a real driver, threads may call at once.
extern std::recursive_mutex lock;
// What every call gets once something went wrong on the device.
extern Result broken;
// The kernel that runs, for messages.
extern const char *running;

// A number of the environment.
unsigned long long setting(const char *name, unsigned long long otherwise);

// Says what is wrong with a program, which is lost as on a device: from now on every call fails.
void illegal(const char *format, ...);

// --- memory.cpp

// Bytes of the device, and of its buffers.
size_t memory_bytes();
size_t memory_used();
// Whether one buffer, of the device or pinned, has all of these bytes.
bool has(Address address, size_t bytes);
// Makes memory of the driver's own known, which is there for ever.
void know(Address address, size_t bytes);
// Whether they are host memory that a device can read by itself.
bool is_pinned(const void *address, size_t bytes);
// The end of the buffer that an address is in.
Address end_of(Address address);
// Says what the address is beside, on a fault.
void describe(Address address);
// Ends the program where something was written before or after a buffer.
void check_guards();

// --- stream.cpp

// Has a stream do something after what it was asked for before, or records it.
Result ask(Handle stream, Work work);
// What cannot be done on a stream while launches on it are recorded.
Result not_recorded(Handle stream);
// What this thread cannot do while it records launches on any stream.
Result not_recording();
bool is_recording(Handle stream);
// Everything that the stream was asked for, or that all were.
void run_all(Handle stream);
void run_all();

} // namespace driver
